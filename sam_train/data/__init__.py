"""Samples to batches: what a training step is fed with."""
