"""What a training run will cost, before it is started: counted on fake tensors, by the roofline of a device."""
