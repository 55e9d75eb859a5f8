"""Recognise data for the library `datasets`: Parquet, CSV, JSON, `save_to_disk`; and the roles of their columns."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from glue_cli.data.formats.conversations import KEYS
from glue_cli.data.formats.huggingface import opening
from glue_cli.data.formats.table_files import is_table, split_of
from glue_cli.data.image_files import ENDINGS
from glue_cli.data.images import EncodedImage, sizes_of
from glue_cli.data.labels import names_in
from glue_cli.data.recognise.found_data import FoundData, match_splits, unusual
from glue_cli.spec.schema import DataSpec

_USUAL_INPUTS = ("image", "img", "text")
_CONVERSATIONS = ("messages", "conversations")  # usual names
_LABELS = ("label", "labels", "class", "category", "target", "y")  # common names, the format's own first
# Usual names of two texts that one label is for: entailment, similarity, questions and what may answer them.
_PAIRS = [
    *("text text_pair", "premise hypothesis", "sentence1 sentence2", "sentence_A sentence_B", "question1 question2"),
    *("text1 text2", "text_a text_b", "query passage", "query document", "question sentence", "question passage"),
    "question context",
]
# Usual names of what a language model is asked, and of what it is to reply.
_ASKED = [
    *("prompt completion", "instruction output", "instruction response", "prompt response", "question answer"),
    *("query response", "input output", "question response"),
    *("document summary", "article summary", "article highlights", "dialogue summary", "input_text target_text"),
]
# Common names of numbers to predict.
_NUMBERS = (*_LABELS, "score", "scores", "rating", "value", "similarity", "similarity_score")
_OF_LABELS = {"class", "whole", "text", "number", "truth"}  # kinds of columns that may be labels
_COUNTS_ROWS = re.compile(r"(?:Unnamed: \d+|__index_level_\d+__|index|idx|id)", re.IGNORECASE)
_LOOKED_AT = 200  # rows whose texts and images are checked
_MOST_CLASSES = 1000  # the most distinct values of a column of labels


def find_table(
    root: Path, cache: Path | None, *, stand_in: bool, for_writing: bool, n_numbers: int | None
) -> FoundData | None:
    """Look for tables of splits; None if there are none.

    Args:
        stand_in: as for `match_splits`.
        for_writing: whether the model writes text, so that no column is a label.
        n_numbers: how many numbers an example the model predicts; None if it does not.
    Raises:
        SpecError: there are some, but the library `datasets` is not installed.
        DataError: a table exists but is damaged.
    """
    matched = match_splits(_names(root), stand_in=stand_in)
    if matched is None:
        return None
    splits, doubts = matched
    written = unusual(splits)
    data = DataSpec(format="huggingface", root=str(root), splits=written)  # type: ignore[arg-type]
    with opening(data, root, cache) as open_split:
        tables = {split: open_split(split) for split in splits}
        counts = {split: table.num_rows for split, table in tables.items() if table is not None}
        return _describe(tables["train"], written, counts, doubts, for_writing=for_writing, n_numbers=n_numbers)


def _names(root: Path) -> set[str]:
    """Return possible names of splits: table files without shard numbers, and folders that contain tables."""
    names = {split_of(path) for folder in (root, root / "data") for path in _tables(folder)}
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return names | {path.name for path in folders if (path / "state.json").is_file() or any(_tables(path))}


def _tables(folder: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if is_table(path)] if folder.is_dir() else []


def _describe(
    table: Any,
    splits: Mapping[str, str],
    counts: Mapping[str, int],
    doubts: Sequence[str],
    *,
    for_writing: bool,
    n_numbers: int | None,
) -> FoundData:
    kinds = {name: _kind(feature) for name, feature in table.features.items()}
    columns: dict[str, str | list[str]] = {}
    choices: list[str] = []
    numbers = _find_numbers(kinds, n_numbers) if n_numbers else []
    target = numbers[0] if numbers else None if for_writing or n_numbers else _find_target(table, kinds)
    if not n_numbers and (replies := _find_replies(kinds, has_target=target is not None)):
        texts = [name for name, kind in kinds.items() if kind == "text"]
        doubts = (*doubts, *_unread(table, texts, [*replies.values()], most=0))
        return FoundData("huggingface", splits, replies, counts, targets="tokens", doubts=doubts)
    role, inputs = _find_inputs(table, {name: kind for name, kind in kinds.items() if name not in (target, *numbers)})
    if role is None:
        choices.append(
            f"columns: {{image: NAME}}, {{text: NAME}} or {{inputs: [NAME, ...]}}; there are {_listed(kinds)}"
        )
    elif role == "text":
        texts = [name for name, kind in kinds.items() if kind == "text" and name != target]
        read = (_find_pair(texts, _PAIRS) if target is not None else None) or inputs
        columns |= {part: name for part, name in zip(("text", "text_pair"), read, strict=False) if part != name}
        doubts = (*doubts, *_unread(table, texts, read, most=0.5))
    elif inputs[0] not in _USUAL_INPUTS:
        columns[role] = list(inputs) if role == "inputs" else inputs[0]
    is_number = bool(numbers) or (target is not None and kinds[target] == "number")
    if n_numbers and not numbers:
        name = "NAME" if n_numbers == 1 else "[NAME, ...]"
        choices.append(f"columns: {{target: {name}}}, the numbers to predict; there are {_listed(kinds)}")
    elif target is None:
        if role == "text":  # a language model needs nothing else
            if not for_writing and (
                unread := {name: kind for name, kind in kinds.items() if kind in _OF_LABELS - {"text"}}
            ):
                doubts = (*doubts, f"data.columns: no label was found, which a classifier needs, in {_listed(unread)}")
        else:
            choices.append(f"columns: {{label: NAME}} or {{target: [NAME, ...]}}; there are {_listed(kinds)}")
    elif target != "label" or is_number:
        columns["target" if is_number else "label"] = numbers if len(numbers) > 1 else target
    names = _class_names(table, target) if target is not None and not is_number else None
    return FoundData(
        "huggingface",
        splits,
        columns,
        counts,
        targets="numbers" if is_number or n_numbers else "labels" if target is not None else "tokens",
        n_classes=names if isinstance(names, int) else len(names) if names else None,
        class_names=tuple(names) if isinstance(names, list) else (),
        sizes=_sizes(table, inputs[0]) if role == "image" else frozenset(),
        doubts=tuple(doubts),
        choices=tuple(choices),
    )


def _kind(feature: Any) -> str:
    """Return the kind of values in a column.

    Returns:
        image, class, text, whole, number, truth, messages, or other.
    """
    name = type(feature).__name__
    if name in ("Image", "ClassLabel"):
        return {"Image": "image", "ClassLabel": "class"}[name]
    dtype = str(getattr(feature, "dtype", ""))
    of_list = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(of_list, dict) and any(key in of_list for key, _ in KEYS):
        return "messages"
    if name != "Value":
        return "other"
    known = {"string": "text", "large_string": "text", "bool": "truth", "float": "number"}
    known |= {"int": "whole", "uint": "whole"}
    return known.get(dtype.rstrip("0123456789"), "other")


def _find_target(table: Any, kinds: Mapping[str, str]) -> str | None:
    """Return the column to predict, if there is only one clear choice."""
    hinted = [name for name in _LABELS if kinds.get(name) in _OF_LABELS]
    classes = [name for name, kind in kinds.items() if kind == "class"]
    if hinted or len(classes) == 1:
        return (hinted or classes)[0]
    few = [name for name, kind in kinds.items() if kind in ("whole", "text", "truth") and _has_few_values(table, name)]
    return few[0] if len(few) == 1 else None


def _find_numbers(kinds: Mapping[str, str], n_numbers: int) -> list[str]:
    """Return the columns of so many numbers to predict, if there is only one clear choice; else none."""
    numeric = [n for n, kind in kinds.items() if kind in ("number", "whole") and not _COUNTS_ROWS.fullmatch(n)]
    if n_numbers == 1 and (usual := [name for name in _NUMBERS if name in numeric]):
        return usual[:1]
    of_fractions = [name for name in numeric if kinds[name] == "number"]
    return next((names for names in (numeric, of_fractions) if len(names) == n_numbers < len(kinds)), [])


def _has_few_values(table: Any, name: str) -> bool:
    n_values: int = len(table.unique(name))
    return bool(n_values <= min(_MOST_CLASSES, table.num_rows // 2))


def _find_inputs(table: Any, kinds: Mapping[str, str]) -> tuple[str | None, Sequence[str]]:
    """Return the kind of inputs, image, text or numbers, and their columns; None if unclear."""
    usual = next((name for name in _USUAL_INPUTS if kinds.get(name) in ("image", "text")), None)
    images = [name for name, kind in kinds.items() if kind == "image"]
    if usual or images:
        chosen = usual or images[0]
        return ("image" if kinds[chosen] == "image" else "text"), [chosen]
    texts = [name for name, kind in kinds.items() if kind == "text"]
    if paths := [name for name in texts if _names_images(table, name)]:
        return "image", paths[:1]
    if texts:
        head = table.select(range(min(_LOOKED_AT, table.num_rows)))
        return "text", [max(texts, key=lambda name: sum(len(text or "") for text in head[name]))]
    numbers = [n for n, kind in kinds.items() if kind in ("number", "whole") and not _COUNTS_ROWS.fullmatch(n)]
    return ("inputs", numbers) if numbers else (None, [])


def _names_images(table: Any, name: str) -> bool:
    """Tell whether a column's texts are paths of images, by their endings."""
    texts = table.select(range(min(_LOOKED_AT, table.num_rows)))[name]
    return bool(texts) and all(str(text).lower().endswith(ENDINGS) for text in texts)


def _find_pair(texts: Sequence[str], known: Sequence[str]) -> Sequence[str] | None:
    """Return two columns of texts that belong together, if their names say so."""
    return next((pair.split() for pair in known if all(name in texts for name in pair.split())), None)


def _find_replies(kinds: Mapping[str, str], *, has_target: bool) -> dict[str, str]:
    """Return what a language model is asked and replies: columns by role; empty if no names say so."""
    if conversations := [name for name, kind in kinds.items() if kind == "messages"]:
        return {"messages": next((name for name in _CONVERSATIONS if name in conversations), conversations[0])}
    texts = [name for name, kind in kinds.items() if kind == "text"]
    pair = None if has_target or "text" in texts else _find_pair(texts, _ASKED)
    return dict(zip(("prompt", "completion"), pair, strict=True)) if pair else {}


def _unread(table: Any, texts: Sequence[str], read: Sequence[str], *, most: float) -> Iterator[str]:
    """Yield a line about columns of texts that are not read.

    Args:
        most: the share of texts of several words from which on a column counts; identifiers and addresses have few.
    """
    if others := [name for name in texts if name not in read and _share_of_words(table, name) > most]:
        named = " and ".join(f"'{name}'" for name in read)
        yield f"data.columns: of the texts {named} is read, and not {', '.join(others)}"


def _share_of_words(table: Any, name: str) -> float:
    """Return the share of a column's texts that have several words."""
    texts = table.select(range(min(_LOOKED_AT, table.num_rows)))[name]
    return sum(len((text or "").split()) > 1 for text in texts) / max(1, len(texts))


def _class_names(table: Any, name: str) -> list[str] | int | None:
    """Return the class names, or for numbered classes their number; None for anything else."""
    if names := getattr(table.features[name], "names", None):
        return list(names)
    values = table.unique(name)
    if all(type(value) is bool for value in values):
        return 2
    if all(type(value) is str for value in values):
        return list(names_in(values))
    return max(values) + 1 if values and all(type(value) is int and value >= 0 for value in values) else None


def _sizes(table: Any, name: str) -> frozenset[tuple[int, int]]:
    undecoded = import_module("datasets").Image(decode=False)
    head = table.select(range(min(_LOOKED_AT, table.num_rows))).cast_column(name, undecoded)
    cells = [cell for cell in head[name] if cell and cell["bytes"]]  # a path may point anywhere; the reader checks it
    return sizes_of(EncodedImage(name, cell["bytes"]) for cell in cells)


def _listed(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
