"""The staged search: it screens starts, races the best of them, and guards the result."""
