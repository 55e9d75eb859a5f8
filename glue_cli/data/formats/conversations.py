"""Conversations as data sets hold them: messages with `role` and `content`, or, as ShareGPT's, `from` and `value`."""

from collections.abc import Mapping, Sequence
from typing import Any

from glue_cli.foundation.errors import DataError

# Keys of a message that say who wrote it and what, in each way.
KEYS = (("role", "content"), ("from", "value"))
_ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant", "bard": "assistant"}


def read_conversation(cell: object, at: str) -> Sequence[Mapping[str, Any]]:
    """Return messages as chat templates take them.

    Args:
        cell: of a table, where keys that a message lacks have no value.
        at: its place in messages to the user.
    Raises:
        DataError: it is no list of messages.
    """
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{at}: found {str(cell)[:40]!r}, wanted a list of messages")
    return [_read_message(each, f"{at}, message {number} (from 0)") for number, each in enumerate(cell)]


def _read_message(entry: object, at: str) -> Mapping[str, Any]:
    known = {key: value for key, value in entry.items() if value is not None} if isinstance(entry, dict) else {}
    for who, what in KEYS:
        if isinstance(role := known.get(who), str):
            others = {key: value for key, value in known.items() if key not in (who, what)}
            return {"role": _ROLES.get(role, role), "content": known.get(what, ""), **others}
    wanted = " or ".join(f"{{'{who}': ..., '{what}': ...}}" for who, what in KEYS)
    raise DataError(f"{at}: found {str(entry)[:40]!r}, wanted {wanted}")
