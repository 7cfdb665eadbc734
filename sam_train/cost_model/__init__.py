"""Cost of a training run, before it is started: one step is counted on fake tensors and timed by a device's roofline."""
