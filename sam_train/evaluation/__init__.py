"""Evaluation protocols, one per file, which measure a checkpoint."""
