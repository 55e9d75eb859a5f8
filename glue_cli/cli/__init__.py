"""The command line: the only code that knows typer and rich, prints, and reads the environment."""
