"""The experts of a search as one matrix: in device memory, in host memory, or on disk."""
