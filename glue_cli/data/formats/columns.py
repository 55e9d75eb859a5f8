"""Make inputs and targets of the columns of a table of the library `datasets`."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glue_cli.checkpoints.classes import TRUTHS
from glue_cli.data.classes import of_train, renumber
from glue_cli.data.dataset import Dataset, Replies, Texts
from glue_cli.data.formats.conversations import read_conversation, read_tools
from glue_cli.data.images import EncodedImage, Mode, chosen_resizing, decode_all, is_grey
from glue_cli.data.labels import are_numbers, encode_labels, names_in
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.nearest import did_you_mean
from glue_cli.foundation.printable import shown
from glue_cli.foundation.progress import Progress
from glue_cli.spec.resizing import Resizing
from glue_cli.spec.schema import DataSpec

# The role of a column -> its usual names, tried when the spec names no column.
_INPUTS: dict[str, Sequence[str]] = {
    "image": ("image", "img"),
    "text": ("text",),
    "messages": ("messages", "conversations"),
    "prompt": ("prompt",),
    "inputs": (),
}
_TOOLS = "tools"  # beside conversations
_PAIR: dict[str, Sequence[str]] = {"text_pair": ("text_pair",)}
_COMPLETION: dict[str, Sequence[str]] = {"completion": ("completion",)}
_TARGETS: dict[str, Sequence[str]] = {"label": ("label",), "target": ()}


def may_be_read(data: DataSpec) -> set[str]:
    """Return the names of the columns that a split may be read from, if it has them."""
    named = {name for names in data.columns.values() for name in names}
    usual = {name for roles in (_INPUTS, _PAIR, _COMPLETION, _TARGETS) for names in roles.values() for name in names}
    return named | usual | {_TOOLS}


def read_columns(
    data: DataSpec,
    table: Any,
    open_train: Callable[[], Any],
    *,
    root: Path,
    where: str,
    progress: Progress,
    resizing: Resizing | None = None,
) -> Dataset | Texts | Replies:
    """Read the columns that `data.columns` names, or else those with the usual names.

    `image` becomes uint8 [N, 3, H, W], or [N, 1, H, W] where all images are grey; `inputs` float32, [N, n] from n
    columns of numbers, or [N, ...] from one of lists; `label` int64 [N]; `target` float32 like `inputs`, but [N] from
    a single column of numbers. Texts need neither label nor target, unless they are pairs, with `text_pair`. Language
    models read `text`, or `prompt` and `completion`, or `messages`, with `tools` if there are some, and no label.

    Args:
        table: the split.
        open_train: returns the train split, whose class names number the labels.
        root: the folder of the image files that the table names.
        where: what the split is called in messages.
        resizing: how images are resized, if it gives `data.image_size`.
    Raises:
        SpecError: a column is missing, or the choice is ambiguous.
        DataError: a value does not fit the role of its column.
    """
    role, names = _choose(data, table, _INPUTS, where)
    if role in ("prompt", "messages"):
        return _read_replies(data, table, role, names[0], where)
    targets, class_names = None, None
    target_role, target_names = _choose(data, table, _TARGETS, where, optional=role == "text")
    if target_role == "label":
        targets, class_names = _read_labels(table, target_names[0], open_train, where)
    elif target_role == "target":
        targets = _read_numbers(table, target_names, where)
    paired_by, pair_names = _choose(data, table, _PAIR, where, optional=True)
    if paired_by and (targets is None if role == "text" else paired_by in data.columns):
        what = f"data.columns.text_pair goes with text, not with {role}"
        if role == "text":
            what = f"{where}: texts without labels have no text_pair"
        raise SpecError(what, hint="it is the second of two texts that one label is for")
    if role == "text" and targets is not None and not paired_by:
        _check_train_has_no_pairs(open_train, where)
    if role == "text":
        pairs = _read_texts(table, pair_names[0], where) if paired_by else None
        return Texts(_read_texts(table, names[0], where), targets, class_names, pairs)
    assert targets is not None
    if role == "image":
        images = _read_images(table, names[0], root, where)
        mode: Mode = "L" if all(map(is_grey, images)) else "RGB"
        decoded = decode_all(images, chosen_resizing(data.image_size, resizing), progress, mode=mode)
        return Dataset(decoded, targets, class_names)
    inputs = _read_numbers(table, names, where)
    return Dataset(inputs if inputs.dim() > 1 else inputs[:, None], targets, class_names)


def _choose(
    data: DataSpec, table: Any, roles: dict[str, Sequence[str]], where: str, *, optional: bool = False
) -> tuple[str, list[str]]:
    """Return the role that the table has columns for, and their names; both empty if optional and there are none."""
    present: list[str] = table.column_names
    given = {role: names for role, names in data.columns.items() if role in roles}
    usual = {role: [name] for role, known in roles.items() for name in reversed(known) if name in present}
    chosen = given or dict([*usual.items()][:1])
    if not chosen and optional:
        return "", []
    if len(chosen) != 1:
        reason = f"data.columns names {' and '.join(chosen)}" if chosen else f"{where} has no usual column for that"
        raise SpecError(
            f"wanted one of {', '.join(roles)}, but {reason}",
            hint=f"name it in data.columns; the columns are {', '.join(present)}",
        )
    [(role, names)] = chosen.items()
    if role not in ("inputs", "target") and len(names) != 1:
        raise SpecError(
            f"data.columns.{role}: found {len(names)} columns, wanted one", hint="name one of them in data.columns"
        )
    for name in names:
        if name not in present:
            raise SpecError(
                f"data.columns.{role}: {where} has no column '{name}'",
                hint=did_you_mean(name, present) or f"the columns are {', '.join(present)}",
            )
    return role, names


def _read_labels(
    table: Any, name: str, open_train: Callable[[], Any], where: str
) -> tuple[Tensor, tuple[str, ...] | None]:
    own, written = _names_of(table, name), list(table[name])
    are_whole = all(type(label) is int for label in written)

    def train_labels() -> Sequence[object]:
        return written if own else _labels_in_train(open_train, name, by_name=not are_whole)

    labels, class_names = encode_labels(written, lambda row: _at(where, name, row), train_labels)
    own = class_names or own
    if not own or own == TRUTHS:
        return labels, own
    return renumber(labels, own, of_train(_names_in_train(open_train, name)), where)


def _names_of(table: Any, name: str) -> tuple[str, ...] | None:
    """Return the class names of a column's numbers; each split has its own."""
    return tuple(getattr(table.features.get(name), "names", None) or ()) or None


def _labels_in_train(open_train: Callable[[], Any], name: str, *, by_name: bool = True) -> Sequence[object]:
    """Return the train split's labels as they are written; numbers that have names by these, if wanted."""
    train = open_train()
    if name not in train.column_names:
        raise DataError(f"the train split has no column '{name}'", hint="give the columns one name in every split")
    names, labels = _names_of(train, name), list(train[name])
    if names is None or not by_name:
        return labels
    return [names[label] if type(label) is int and 0 <= label < len(names) else label for label in labels]


def _names_in_train(open_train: Callable[[], Any], name: str) -> tuple[str, ...] | None:
    """Return the names that number the train split's labels; None if they are numbers, or there is no such split."""
    try:
        if of_column := _names_of(open_train(), name):
            return of_column
        names = names_in(_labels_in_train(open_train, name))
    except DataError:  # the test split may be the only one
        return None
    return None if are_numbers(names) else names


def _read_numbers(table: Any, names: Sequence[str], where: str) -> Tensor:
    """Return columns of numbers, float32 [N] from one, [N, n] from several; or a single column of lists, [N, ...]."""
    columns = []
    for name in names:
        values = list(table[name])
        if None in values:
            raise DataError(
                f"{_at(where, name, values.index(None))}: there is no number", hint="give it one, or leave the row out"
            )
        if odd := [row for row, value in enumerate(values) if isinstance(value, str)]:
            odd = [row for row in odd if not _is_number(values[row])] or odd  # one such lets pandas read all as text
            found = f"found {values[odd[0]][:40]!r}, wanted a number"
            raise DataError(f"{_at(where, name, odd[0])}: {found}", hint="give it one, or leave the row out")
        try:
            column = torch.tensor(values, dtype=torch.float32)
        except (TypeError, ValueError) as error:  # text, missing values, or lists of different lengths
            raise DataError(
                f"{where}, column '{name}': {error}", hint="wanted a number in every row, or lists of one length"
            ) from error
        if column.dim() > 1 and len(names) > 1:
            raise DataError(
                f"{where}, column '{name}' has lists, which go alone; it is one of {len(names)} columns",
                hint="name that column alone, or only columns of numbers",
            )
        wrong = ~column.isfinite().flatten(1).all(1) if column.dim() > 1 else ~column.isfinite()
        if wrong.any():
            raise DataError(
                f"{_at(where, name, int(wrong.nonzero()[0]))}: NaN or infinite",
                hint="leave the row out, or fill in a number",
            )
        columns.append(column)
    return columns[0] if len(columns) == 1 else torch.stack(columns, 1)


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _read_texts(table: Any, name: str, where: str) -> list[str]:
    texts = list(table[name])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            hint = "for a conversation, put all of its messages into one column, 'messages'"
            are_messages = isinstance(text, list) and text and isinstance(text[0], dict)
            found = f"{_at(where, name, row)}: found {str(text)[:40]!r}, wanted text"
            raise DataError(found, hint=hint if are_messages else "leave the row out, or name a column of texts")
    return texts


def _check_train_has_no_pairs(open_train: Callable[[], Any], where: str) -> None:
    with suppress(DataError):  # the test split may be the only one
        if pairs := [name for [name] in _PAIR.values() if name in open_train().column_names]:
            raise SpecError(
                f"{where} has no column '{pairs[0]}', but the train split has",
                hint="give the columns one name in every split",
            )


def _read_replies(data: DataSpec, table: Any, role: str, name: str, where: str) -> Replies:
    """Read prompts and completions, or conversations."""
    if odd := [other for other in data.columns if other not in (role, *(["completion"] if role == "prompt" else []))]:
        raise SpecError(
            f"data.columns.{odd[0]} does not go with {role}, which language models read without labels",
            hint=f"remove one of them from data.columns; the columns are {', '.join(table.column_names)}",
        )
    if role == "messages":
        examples = [read_conversation(cell, _at(where, name, row)) for row, cell in enumerate(table[name])]
        cells = enumerate(table[_TOOLS]) if _TOOLS in table.column_names else ()
        tools = [read_tools(cell, _at(where, _TOOLS, row)) for row, cell in cells]
        return Replies(examples, are_conversations=True, tools=tools)
    _, [reply] = _choose(data, table, _COMPLETION, where)
    prompts, completions = (_read_texts(table, each, where) for each in (name, reply))
    return Replies(list(zip(prompts, completions, strict=True)), are_conversations=False)


def _read_images(table: Any, name: str, root: Path, where: str) -> list[EncodedImage]:
    undecoded = import_module("datasets").Image(decode=False)
    try:
        cells = list(table.cast_column(name, undecoded)[name])
    except Exception as error:  # raised by pyarrow for a column of another type
        raise DataError(
            f"{where}, column '{name}' does not hold images: {error}",
            hint="name a column of images, or of paths to them, in data.columns.image",
        ) from error
    images = []
    for row, cell in enumerate(cells):
        if not cell:
            raise DataError(
                f"{_at(where, name, row)}: there is no image", hint="leave the row out, or fill in its image"
            )
        at = _at(where, name, row)
        path = os.path.abspath(root / (cell["path"] or ""))  # relative paths of a table start there
        is_inside = Path(path).is_relative_to(root.absolute()) and "://" not in (cell["path"] or "")
        if cell["bytes"] is None and not is_inside:
            raise DataError(
                f"{at}: the image '{shown(cell['path'])}' lies outside '{root}'",
                hint="move the image into data.root, or set data.root to a folder above both",
            )
        images.append(EncodedImage(path) if cell["bytes"] is None else EncodedImage(at, cell["bytes"]))
    return images


def _at(where: str, name: str, row: int) -> str:
    return f"{where}, column '{name}', row {row} (from 0)"
