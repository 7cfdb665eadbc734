"""Train Segment Anything by its own recipe. The walk, and the reading order, stands in README.md."""
