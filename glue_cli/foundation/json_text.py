"""Results as standard JSON: NaN and infinity, which JSON does not have, become null."""

import json
import math
from typing import Any


def as_json(result: Any) -> str:
    """Return a result as JSON on one line."""
    return json.dumps(_finite(result), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
