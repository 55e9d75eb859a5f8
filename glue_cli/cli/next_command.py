"""The command to try next, as a hint shows it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

_NAMED = 6  # experts at most


def mix_command(experts: Sequence[Path], *options: str) -> str:
    """Return the line that searches for a blend of experts; folders and adapters are blended into a folder."""
    named = shlex.join(map(str, experts)) if len(experts) <= _NAMED else "EXPERT..."
    are_folders = all(expert.is_dir() or str(expert).startswith("hf:") for expert in experts)
    return " ".join(["glue mix --method spsa", *options, named, *(["-o prior/"] if are_folders else [])])
