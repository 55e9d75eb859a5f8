"""Add tokens to the tokenizer files of a model's folder. Needs no library."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.json_files import read_object

# File names of tokenizers of all kinds.
_NAMES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("tekken.json", "spiece*", "*.spm", "*.bpe", "chat_template*", "*tokeniz*.py"),
)
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclass(frozen=True)
class AddedToken:
    """A token that a tokenizer does not split.

    Attributes:
        settings: how a text is searched for it, and whether it is special, with the keys of `tokenizer.json`.
    """

    text: str
    number: int
    settings: dict[str, Any]


def is_of_tokenizer(file: Path) -> bool:
    """Tell whether a file of a model's folder belongs to its tokenizer."""
    return any(fnmatchcase(file.name, pattern) for pattern in _NAMES)


def read_added_token(folder: Path, text: str, number: int) -> AddedToken:
    """Return a token with the settings from the tokenizer of `folder`, and another number."""
    listed = read_object(folder / "tokenizer.json").get("added_tokens")
    decoder = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    entries = [*(listed if isinstance(listed, list) else ()), *(decoder.values() if isinstance(decoder, dict) else ())]
    entry: dict[str, Any] = next((e for e in entries if isinstance(e, dict) and e.get("content") == text), {})
    return AddedToken(text, number, {key: bool(entry.get(key, value)) for key, value in _PLAIN.items()})


def with_tokens(file: Path, tokens: Sequence[AddedToken]) -> bytes | None:
    """Return the text of a tokenizer file with `tokens` appended; None for a file that lists no tokens."""
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
