"""What data lie in a folder: their format, splits, columns, classes and sizes, found without reading all of them."""
