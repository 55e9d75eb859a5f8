"""What `glue mix` does, from a plan to a result."""
