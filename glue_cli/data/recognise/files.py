"""Recognise CIFAR-10, SVHN, safetensors, JSON lines, and images in one folder per class."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data.formats.cifar10 import CLASS_NAMES, RECORDS_PER_FILE, find_layout
from glue_cli.data.formats.jsonl import read_jsonl
from glue_cli.data.formats.safetensors_folder import read_safetensors
from glue_cli.data.image_files import find_image_files, folders_in, has_image
from glue_cli.data.images import EncodedImage, sizes_of
from glue_cli.data.recognise.found_data import FoundData, match_splits, unusual
from glue_cli.foundation.errors import CheckpointError, DataError
from glue_cli.foundation.progress import silent
from glue_cli.foundation.regular_files import regular
from glue_cli.spec.schema import DataSpec

_LOOKED_AT = 200  # number of images whose size is read


def find_cifar10(root: Path, *, stand_in: bool) -> FoundData | None:
    if find_layout(root) is None:
        return None
    counts = {"train": 5 * RECORDS_PER_FILE, "test": RECORDS_PER_FILE}
    return FoundData("cifar10", counts=counts, n_classes=10, class_names=CLASS_NAMES, sizes=frozenset({(32, 32)}))


def find_svhn(root: Path, *, stand_in: bool) -> FoundData | None:
    if not (root / "train_32x32.mat").is_file():
        return None
    return FoundData("svhn", n_classes=10, class_names=tuple("0123456789"), sizes=frozenset({(32, 32)}))


def find_safetensors(root: Path, *, stand_in: bool) -> FoundData | None:
    """Look for SPLIT.safetensors; reads the training labels.

    Raises:
        DataError: the training split exists but is damaged.
    """
    matched = match_splits([path.stem for path in root.glob("*.safetensors")], stand_in=stand_in)
    if matched is None:
        return None
    splits, doubts = matched
    train = read_safetensors(root / f"{splits['train']}.safetensors")
    names, labels = train.class_names or (), train.labels
    return FoundData(
        "safetensors",
        unusual(splits),
        counts={split: _count_rows(root / f"{name}.safetensors") for split, name in splits.items()},
        targets="numbers" if labels is None else "labels",
        n_classes=None if labels is None else len(names) or int(labels.max()) + 1,
        class_names=names,
        sizes=frozenset({(train.shape[1], train.shape[2])}) if train.has_images else frozenset(),
        doubts=doubts,
    )


def _count_rows(path: Path) -> int:
    try:
        shapes = [entry.shape for entry in read_checkpoint(path).entries.values()]
    except CheckpointError as error:
        raise DataError(error.message, items=error.items, hint="write the file again") from error
    return shapes[0][0] if shapes and shapes[0] else 0


def find_jsonl(root: Path, *, stand_in: bool) -> FoundData | None:
    """Look for SPLIT.jsonl whose lines have a `text`; files with other keys are left to the library `datasets`.

    So are those whose labels are numbers to predict, or may have another name.

    Raises:
        DataError: a file exists but is damaged.
    """
    matched = match_splits([path.stem for path in root.glob("*.jsonl")], stand_in=stand_in)
    if matched is None or not _has_text(root / f"{matched[0]['train']}.jsonl"):
        return None
    splits, doubts = matched
    data = DataSpec(format="jsonl", root=str(root), splits=unusual(splits))  # type: ignore[arg-type]
    read = {split: read_jsonl(data, split, root=root, cache=None, progress=silent) for split in splits}
    counts = {split: len(texts.texts) for split, texts in read.items() if texts}
    train = read["train"]
    assert train is not None
    description = FoundData("jsonl", unusual(splits), counts=counts, targets="tokens", doubts=doubts)
    if train.targets is None:
        return description
    names = train.class_names or ()
    n_classes = len(names) or int(train.targets.max()) + 1
    return replace(description, targets="labels", n_classes=n_classes, class_names=names)


def _has_text(path: Path) -> bool:
    try:
        with open(path, "rb", opener=regular) as file:
            lines = (line for line in file if line.strip())
            entry = json.loads(next(lines, b""))
            if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
                return False
            label = _label(entry)
            if type(label) is float or (type(label) is int and any(_is_fraction(line) for line in lines)):
                return False
    except (OSError, ValueError, RecursionError):
        return False
    has_label, others = "label" in entry or "labels" in entry, entry.keys() - {"text", "text_pair"}
    return has_label or not others or find_spec("datasets") is None


def _label(entry: object) -> object:
    return entry.get("label", entry.get("labels")) if isinstance(entry, dict) else None


def _is_fraction(line: bytes) -> bool:
    """Tell whether a line's label is no whole number; a line that is not JSON is told when the texts are read."""
    with suppress(ValueError, RecursionError):
        return type(_label(json.loads(line))) is float
    return False


def find_images(root: Path, *, stand_in: bool) -> FoundData | None:
    """Look for SPLIT/CLASS/*.jpg; reads the headers of the first images."""
    folders = folders_in(root)
    matched = match_splits(folders, stand_in=stand_in)
    if matched is None and stand_in and len(folders) > 1 and all(has_image(root / name) for name in folders):
        matched = (
            {"train": "."},
            ("data.splits: there are no folders of splits, so all images are the train split",),
        )
    if matched is None:
        return None
    splits, doubts = matched
    classes = {split: folders_in(root / name) for split, name in splits.items()}
    train = root / splits["train"]
    if next(_images(train, classes["train"]), None) is None:
        return None
    unknown = {name for names in classes.values() for name in names} - set(classes["train"])
    if unknown:
        doubts = (*doubts, f"data: no training example of the class '{min(unknown)}', which other splits have")
    counts = {split: sum(1 for _ in _images(root / name, classes[split])) for split, name in splits.items()}
    return FoundData(
        "image-folder",
        unusual(splits),
        counts=counts,
        n_classes=len(classes["train"]),
        class_names=tuple(classes["train"]),
        sizes=_sizes(train, classes["train"]),
        doubts=doubts,
    )


def _images(folder: Path, classes: list[str]) -> Iterator[Path]:
    for name in classes:
        yield from find_image_files(folder / name).images


def _sizes(folder: Path, classes: list[str]) -> frozenset[tuple[int, int]]:
    """Return the sizes of some images of every class, as classes may come from different sources."""
    n_each = max(1, _LOOKED_AT // len(classes))
    looked_at = (path for name in classes for path in islice(_images(folder, [name]), n_each))
    return sizes_of(EncodedImage(str(path)) for path in looked_at)


FINDERS: tuple[Callable[..., FoundData | None], ...] = (
    find_cifar10,
    find_svhn,
    find_images,
    find_safetensors,
    find_jsonl,
)
