"""Blends of experts that are larger than memory: all of a step go through the model together, block by block."""
