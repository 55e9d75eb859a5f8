"""Texts as JSON lines: `{"text": ..., "label": ...}`, `text_pair` for pairs; the text alone for a language model."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from glue_cli.data.dataset import Texts
from glue_cli.data.labels import encode_labels
from glue_cli.data.split_names import find_split, split_name
from glue_cli.data.tokens import LONGER_TEXTS, MOST_CHARACTERS
from glue_cli.foundation.errors import UNREADABLE, DataError
from glue_cli.foundation.progress import Progress
from glue_cli.foundation.regular_files import regular
from glue_cli.foundation.units import size
from glue_cli.spec.schema import DataSpec

_BYTES_A_CHARACTER = 8  # fits the longest allowed text even if each character is written as \uXXXX
_OTHERWISE = ("prompt", "completion", "messages", "conversations")  # keys that another format reads
_HALF = re.compile("[\ud800-\udfff]")
_EXAMPLE = '{"text": "Loved it.", "label": 1}'


def read_jsonl(data: DataSpec, split: str, *, root: Path, cache: Path | None, progress: Progress) -> Texts | None:
    """Read `train.jsonl`, `test.jsonl` or, if there is one, `val.jsonl`; `data.splits` gives them other names.

    A label is a number from 0, true or false, or the name of a class; `text_pair` is the second text of a pair. Other
    keys and blank lines are ignored.

    Raises:
        DataError: a file is missing or has no line, a line is not JSON or has no text, a label is invalid, or pairs
            have no labels.
    """
    name = find_split(data, split, lambda name: (root / f"{name}.jsonl").is_file())
    if name is None:
        return None
    path = root / f"{name}.jsonl"
    most_bytes = _BYTES_A_CHARACTER * (data.max_characters or MOST_CHARACTERS)
    lines = _read_lines(path, most_bytes)
    texts, labels = [line.text for line in lines], [line.label for line in lines]
    pairs = None if lines[0].pair is None else [line.pair or "" for line in lines]
    if labels[0] is None:
        train = root / f"{split_name(data, 'train')}.jsonl"
        if split != "train" and train.is_file() and _read_lines(train, most_bytes)[0].label is not None:
            raise DataError(f"'{path}' has no labels, but '{train}' has", hint="give each line its label")
        if pairs:
            raise DataError(f"{lines[0].where}: pairs of texts need labels", hint="join them, for a language model")
        return Texts(texts, None)

    def train_labels() -> Sequence[object]:
        train = root / f"{split_name(data, 'train')}.jsonl"
        if split == "train" or (all(type(label) is int for label in labels) and type(_first_label(train)) is int):
            return labels  # if its first label is a number, all are
        return [line.label for line in _read_lines(train, most_bytes)]

    return Texts(texts, *encode_labels(labels, lambda i: lines[i].where, train_labels), pairs)


def _first_label(path: Path) -> object:
    """Return the label in the first line of a file; None if there is none."""
    with suppress(OSError, ValueError, RecursionError), open(path, "rb", opener=regular) as file:
        entry = json.loads(next((line for line in file if line.strip()), b""))
        return entry.get("label", entry.get("labels")) if isinstance(entry, dict) else None
    return None


@dataclass(frozen=True)
class _Line:
    where: str
    text: str
    pair: str | None
    label: object  # None for none


def _read_lines(path: Path, most_bytes: int) -> list[_Line]:
    try:
        with open(path, "rb", opener=regular) as file:
            lines = [_parse(line, where) for where, line in _number(path, file, most_bytes) if line.strip()]
    except FileNotFoundError:
        raise DataError(f"'{path}' is missing", hint="check data.root in the spec, and data.splits") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error}", hint=UNREADABLE) from error
    if not lines:
        raise DataError(f"'{path}' is empty", hint=f"wanted a line an example: {_EXAMPLE}")
    for line in lines:
        if (line.label is None) != (lines[0].label is None):
            here, there = ("no label", "one") if line.label is None else ("a label", "none")
            raise DataError(
                f"{line.where}: there is {here}, but {lines[0].where} has {there}",
                hint="give every line a label, or none",
            )
        if (line.pair is None) != (lines[0].pair is None):
            here, there = ("no 'text_pair'", "one") if line.pair is None else ("a 'text_pair'", "none")
            raise DataError(
                f"{line.where}: there is {here}, but {lines[0].where} has {there}",
                hint="give every line a text_pair, or none",
            )
    return lines


def _number(path: Path, file: IO[bytes], most_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield each line with its place in the file.

    Raises:
        DataError: a line has more than `most_bytes`.
    """
    for number, line in enumerate(iter(partial(file.readline, most_bytes + 1), b""), 1):
        if len(line) > most_bytes:
            raise DataError(f"{path}:{number}: the line is longer than {size(most_bytes)}", hint=LONGER_TEXTS)
        yield f"{path}:{number}", line


def _parse(line: bytes, where: str) -> _Line:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}", hint=f"wanted a line an example: {_EXAMPLE}") from None
    text = entry.get("text") if isinstance(entry, dict) else None
    if isinstance(text, str):
        pair = entry.get("text_pair")
        if pair is not None and not isinstance(pair, str):
            raise DataError(
                f"{where}: 'text_pair' is {json.dumps(pair)[:40]}, wanted text",
                hint="write it as a text in quotes, or leave it out",
            )
        if _HALF.search(text + (pair or "")):
            raise DataError(f"{where}: the text has half of a surrogate pair", hint="it was cut: leave the half out")
        return _Line(where, text, pair, entry.get("label", entry.get("labels")))
    if isinstance(entry, dict):
        kind = f"'text' is {json.dumps(text)[:40]}" if "text" in entry else "there is no 'text'"
    else:
        kind = f"found a {type(entry).__name__}"
    hint = f"wanted a line an example: {_EXAMPLE}"
    if isinstance(entry, dict) and "text" not in entry and (read := [key for key in _OTHERWISE if key in entry]):
        hint = f"set data.format: huggingface, which reads {' and '.join(read)}"
    raise DataError(f"{where}: {kind}", hint=hint)
