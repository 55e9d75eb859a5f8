"""The work of `glue check`."""
