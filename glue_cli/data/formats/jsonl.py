"""Texts as JSON lines: `{"text": ..., "label": ...}`, or the text alone for a language model."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from glue_cli.data.dataset import Texts, split_name
from glue_cli.data.labels import encode_labels
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Progress
from glue_cli.foundation.regular_files import regular
from glue_cli.foundation.units import size
from glue_cli.spec.schema import DataSpec

_MOST_LINE_BYTES = 32_000_000  # fits the longest allowed text even if each character is written as \uXXXX
_EXAMPLE = '{"text": "Loved it.", "label": 1}'


def read_jsonl(data: DataSpec, split: str, *, root: Path, cache: Path | None, progress: Progress) -> Texts | None:
    """Read `train.jsonl`, `test.jsonl` or, if there is one, `val.jsonl`; `data.splits` gives them other names.

    A label is a number from 0 or the name of a class; other keys and blank lines are ignored.

    Raises:
        DataError: a file is missing or has no line, a line is not JSON or has no text, or a label is invalid.
    """
    name = split_name(data, split)
    if name is None:
        return None
    path = root / f"{name}.jsonl"
    if split == "val" and "val" not in data.splits and not path.is_file():
        return None
    lines = _read_lines(path)
    texts, labels = [line.text for line in lines], [line.label for line in lines]
    if labels[0] is None:
        return Texts(texts, None)

    def train_labels() -> Sequence[object]:
        train = root / f"{split_name(data, 'train')}.jsonl"
        return labels if split == "train" else [line.label for line in _read_lines(train)]

    return Texts(texts, *encode_labels(labels, lambda i: lines[i].where, train_labels))


@dataclass(frozen=True)
class _Line:
    where: str
    text: str
    label: object  # None for none


def _read_lines(path: Path) -> list[_Line]:
    try:
        with open(path, "rb", opener=regular) as file:
            lines = [_parse(line, where) for where, line in _number(path, file) if line.strip()]
    except FileNotFoundError:
        raise DataError(f"'{path}' is missing", hint="check data.root in the spec, and data.splits") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    if not lines:
        raise DataError(f"'{path}' is empty", hint=f"wanted a line an example: {_EXAMPLE}")
    for line in lines:
        if (line.label is None) != (lines[0].label is None):
            here, there = ("no label", "one") if line.label is None else ("a label", "none")
            raise DataError(f"{line.where}: there is {here}, but {lines[0].where} has {there}")
    return lines


def _number(path: Path, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield each line with its place in the file.

    Raises:
        DataError: a line is longer than any text that a tokenizer takes.
    """
    for number, line in enumerate(iter(partial(file.readline, _MOST_LINE_BYTES + 1), b""), 1):
        if len(line) > _MOST_LINE_BYTES:
            raise DataError(
                f"{path}:{number}: the line is longer than {size(_MOST_LINE_BYTES)}",
                hint="split the text into several",
            )
        yield f"{path}:{number}", line


def _parse(line: bytes, where: str) -> _Line:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}", hint=f"wanted a line an example: {_EXAMPLE}") from None
    text = entry.get("text") if isinstance(entry, dict) else None
    if isinstance(text, str):
        return _Line(where, text, entry.get("label"))
    if isinstance(entry, dict):
        kind = f"'text' is {json.dumps(text)[:40]}" if "text" in entry else "there is no 'text'"
    else:
        kind = f"found a {type(entry).__name__}"
    raise DataError(f"{where}: {kind}", hint=f"wanted a line an example: {_EXAMPLE}")
