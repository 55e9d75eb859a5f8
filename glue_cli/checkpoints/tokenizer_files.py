"""The files of a folder's tokenizer, with more tokens. Needs no library."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.json_files import read_object

# How the files of a tokenizer are called, of whatever kind.
_NAMES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("tekken.json", "spiece*", "*.spm", "*.bpe", "chat_template*", "*tokeniz*.py"),
)
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclass(frozen=True)
class AddedToken:
    """A token that a tokenizer sets apart from the text.

    Attributes:
        settings: how it is found in a text, and whether it is special, as `tokenizer.json` writes it.
    """

    text: str
    number: int
    settings: dict[str, Any]


def is_of_tokenizer(file: Path) -> bool:
    """Tell whether a file of a model's folder, seen from there, belongs to its tokenizer."""
    return any(fnmatchcase(file.name, pattern) for pattern in _NAMES)


def read_added_token(folder: Path, text: str, number: int) -> AddedToken:
    """Return a token as the tokenizer of `folder` has it, with another number."""
    listed = read_object(folder / "tokenizer.json").get("added_tokens")
    decoder = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    entries = [*(listed if isinstance(listed, list) else ()), *(decoder.values() if isinstance(decoder, dict) else ())]
    found: dict[str, Any] = next((e for e in entries if isinstance(e, dict) and e.get("content") == text), {})
    return AddedToken(text, number, {key: bool(found.get(key, value)) for key, value in _PLAIN.items()})


def with_tokens(file: Path, tokens: Sequence[AddedToken]) -> bytes | None:
    """Return the text of a tokenizer's file with more tokens behind its own; None for a file that lists none."""
    content = read_object(file)
    if file.name == "tokenizer.json":
        entries = [{"id": token.number, "content": token.text, **token.settings} for token in tokens]
        content["added_tokens"] = [*(content.get("added_tokens") or ()), *entries]
    elif file.name == "tokenizer_config.json" and isinstance(content.get("added_tokens_decoder"), dict):
        entries_by_number = {str(token.number): {"content": token.text, **token.settings} for token in tokens}
        content["added_tokens_decoder"] = {**content["added_tokens_decoder"], **entries_by_number}
    elif file.name == "added_tokens.json":
        content |= {token.text: token.number for token in tokens}
    else:
        return None
    return (json.dumps(content, indent=2) + "\n").encode()
