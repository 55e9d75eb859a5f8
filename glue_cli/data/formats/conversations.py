"""Conversations as data sets hold them: messages with `role` and `content`, or, as ShareGPT's, `from` and `value`."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from glue_cli.foundation.errors import DataError

# Keys of a message that say who wrote it and what, in each way.
KEYS = (("role", "content"), ("from", "value"))
_ASSISTANTS = ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "chatbot")
_ROLES = {"human": "user", **dict.fromkeys(_ASSISTANTS, "assistant")}


def read_conversation(cell: object, at: str) -> Sequence[Mapping[str, Any]]:
    """Return messages as chat templates take them.

    Args:
        cell: of a table, where keys that a message lacks have no value.
        at: its place in messages to the user.
    Raises:
        DataError: it is no list of messages.
    """
    if not isinstance(cell, list) or not cell:
        raise DataError(
            f"{at}: found {str(cell)[:40]!r}, wanted a list of messages",
            hint="name the column of whole conversations in data.columns.messages",
        )
    return [_read_message(each, f"{at}, message {number} (from 0)") for number, each in enumerate(cell)]


def read_tools(cell: object, at: str) -> Sequence[Any]:
    """Return the tools that a conversation may use, as chat templates take them.

    Args:
        cell: of a table: their JSON schemas, as a list or as its text; None for no tools.
    Raises:
        DataError: it is no list of them.
    """
    found = _parsed(cell)
    if found is None or found == {}:
        return []
    tools = [_parsed(each) for each in (found if isinstance(found, list) else [found])]
    if not all(isinstance(tool, dict) for tool in tools):
        raise DataError(
            f"{at}: found {str(cell)[:40]!r}, wanted a list of tools, or its JSON",
            hint="write the JSON schema of each tool, or leave the column empty",
        )
    return [_filled(tool) for tool in tools]


def _parsed(value: object) -> object:
    """Return what a JSON text says; None for an empty one, and any other text or value as it is."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value) if value.strip() else None
    return value


def _filled(value: Any) -> Any:
    """Return a value without the keys that have none: a table gives each dictionary the keys of all others."""
    if isinstance(value, dict):
        return {key: _filled(inner) for key, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def _read_message(entry: object, at: str) -> Mapping[str, Any]:
    known = _filled(entry) if isinstance(entry, dict) else {}
    for who, what in KEYS:
        if isinstance(role := known.get(who), str):
            others = {key: value for key, value in known.items() if key not in (who, what)}
            return {"role": _ROLES.get(role, role), "content": _read_content(known.get(what, ""), at), **others}
    wanted = " or ".join(f"{{'{who}': ..., '{what}': ...}}" for who, what in KEYS)
    raise DataError(
        f"{at}: found {str(entry)[:40]!r}, wanted {wanted}", hint="write the message so, or leave the conversation out"
    )


def _read_content(content: object, at: str) -> str:
    """Return a message's text, which may be in parts: `[{"type": "text", "text": ...}]`."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{at}: found {str(content)[:40]!r}, wanted text", hint="leave out what is no text")
    return "".join(map(str, texts))
