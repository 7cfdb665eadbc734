"""Data loading: from the samples of shards to training batches."""

__all__: list[str] = []  # modules are imported by name: the dataset needs Lightning, the synthetic corpus does not
