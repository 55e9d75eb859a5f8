"""The reference says what the code does: it is made from it."""

import subprocess
import sys
from pathlib import Path

import typer

from glue_cli.cli.app import app

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_reference_is_up_to_date():
    """Make it again with: python examples/reference.py > examples/reference.md"""
    made = subprocess.run(
        [sys.executable, EXAMPLES / "reference.py"], capture_output=True, text=True, timeout=120, check=True
    )
    assert made.stdout == (EXAMPLES / "reference.md").read_text(), (
        "python examples/reference.py > examples/reference.md"
    )


def test_it_has_every_option_of_every_command():
    text = (EXAMPLES / "reference.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():
        assert f"### glue {name}\n" in text
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert all(f"`{option}`" in text for option in parameter.opts if parameter.name != "help"), name
