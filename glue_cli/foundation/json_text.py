"""Results as standard JSON: NaN and infinity, which JSON does not have, become null."""

import json
import math
from typing import Any

_BRIEF = 60


def as_json(result: Any) -> str:
    """Return a result as JSON on one line."""
    return json.dumps(_finite(result), allow_nan=False)


def brief_json(value: object) -> str:
    """Return a value from a file as JSON for a message, no more than its first 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}..."


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
