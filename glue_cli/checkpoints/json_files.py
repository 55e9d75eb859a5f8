"""The JSON files beside a checkpoint: its configuration, its tokenizer."""

import json
from pathlib import Path
from typing import Any

from glue_cli.foundation.regular_files import read_text


def read_json(file: Path) -> object:
    """Return what a JSON file holds; None where there is none that can be read."""
    try:
        found: object = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        return None
    return found


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none that can be read."""
    found = read_json(file)
    return found if isinstance(found, dict) else {}
