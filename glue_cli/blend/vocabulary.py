"""The vocabularies of experts that lie in Hugging Face folders. Needs no torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.regular_files import read_text

_LISTED = 3  # tokens in a message


def check_vocabularies(experts: Sequence[Checkpoint]) -> None:
    """Check that experts whose folders hold a tokenizer give the same numbers to the same tokens.

    The rows of their embeddings would mean different words otherwise, and have no mean.

    Raises:
        CheckpointError: they do not, with the tokens in which they differ.
    """
    known = {expert.path: found for expert in experts if (found := _read_vocabulary(expert.path))}
    (first, wanted), *others = known.items() if known else [(Path(), {})]
    items = []
    for path, found in others:
        odd = [token for token in wanted.keys() | found.keys() if wanted.get(token) != found.get(token)]
        if odd:
            named = ", ".join(repr(token) for token in sorted(odd)[:_LISTED])
            more = f" and {len(odd) - _LISTED:,} more" if len(odd) > _LISTED else ""
            items.append(f"{path}: {len(found):,} tokens, {first} has {len(wanted):,}; they differ in {named}{more}")
    if items:
        raise CheckpointError(
            "the experts have unequal vocabularies", items=items, hint="blend models with one and the same tokenizer"
        )


def _read_vocabulary(folder: Path) -> Mapping[str, int] | None:
    """Return a folder's tokens with their numbers; None where there are none that glue can read."""
    try:
        tokenizer = json.loads(read_text(folder / "tokenizer.json"))
        found = tokenizer["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _read_lines(folder / "vocab.txt")
    if isinstance(found, dict):
        return found
    try:  # of a unigram model: [[token, score], ...]
        return {token: number for number, (token, _) in enumerate(found)}
    except (TypeError, ValueError):
        return None


def _read_lines(file: Path) -> Mapping[str, int] | None:
    try:
        tokens = read_text(file).splitlines()
    except (OSError, ValueError):
        return None
    return {token: number for number, token in enumerate(tokens)}
