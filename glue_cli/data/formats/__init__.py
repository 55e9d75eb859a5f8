"""The formats that data sets come in, a file each."""
