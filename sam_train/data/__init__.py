"""Data loading: from the samples of shards to training batches."""
