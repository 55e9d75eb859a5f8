"""The command to try next, as a hint shows it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

_NAMED = 6  # experts at most


def mix_command(experts: Sequence[Path], *options: str, method: str = "spsa") -> str:
    """Return the line that searches for a blend of experts; folders and adapters are blended into a folder."""
    named = shlex.join(map(str, experts)) if len(experts) <= _NAMED else "EXPERT..."
    are_folders = all(expert.is_dir() or str(expert).startswith("hf:") for expert in experts)
    return _command(named, *options, method=method, are_folders=are_folders)


def mix_command_beside(expert: Path) -> str:
    """Return the line that searches for a blend of an expert and all others in the same place."""
    pattern = "*/" if expert.is_dir() else "*.safetensors"
    return _command(f"{shlex.quote(str(expert.parent))}/{pattern}", are_folders=expert.is_dir())


def _command(named: str, *options: str, method: str = "spsa", are_folders: bool) -> str:
    return " ".join([f"glue mix --method {method}", *options, named, *(["-o prior/"] if are_folders else [])])
