"""The readers of the data formats, one module per format."""
