"""Running a model: device, precision, forward passes, losses, metrics, BatchNorm, CUDA graphs."""
