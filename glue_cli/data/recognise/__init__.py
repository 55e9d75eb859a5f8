"""Recognise the data in a folder: format, splits, columns, classes and sizes, without reading all of it."""
