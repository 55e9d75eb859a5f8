"""`python -m glue_cli` is the command `glue`."""

from glue_cli.cli.app import run

if __name__ == "__main__":
    run()
