"""Where slices run. What is done in a slice is the same everywhere."""

from data_engine.drivers.local import run_slices

__all__ = ["run_slices"]
