"""The staged search: screening of starts, the race between the best of them, the guard at the end."""
