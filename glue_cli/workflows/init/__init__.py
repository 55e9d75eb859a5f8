"""`glue init`: from experts and data to a spec."""
