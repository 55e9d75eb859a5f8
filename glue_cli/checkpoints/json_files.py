"""Read JSON files next to a checkpoint, such as its configuration and its tokenizer."""

import json
from pathlib import Path
from typing import Any

from glue_cli.foundation.errors import UNREADABLE, CheckpointError
from glue_cli.foundation.regular_files import read_text


def read_json(file: Path) -> object:
    """Return the content of a JSON file; None if it is missing or no JSON.

    Raises:
        CheckpointError: it is there, but cannot be read.
    """
    try:
        content: object = json.loads(read_text(file))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read: {error.strerror}", hint=UNREADABLE) from None
    return content


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if it is missing or none.

    Raises:
        CheckpointError: it is there, but cannot be read.
    """
    content = read_json(file)
    return content if isinstance(content, dict) else {}
