"""Describe a checkpoint from its header alone. Needs no torch, except for files that torch wrote."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glue_cli.blend.adapters.adapter import is_adapter, read_adapter
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.checkpoints.hub import fetch
from glue_cli.checkpoints.json_files import read_object
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.weight_sets import check_any_has


def show(path: Path, weights: str | None = None) -> dict[str, Any]:
    """Return `glue.show/1` of a checkpoint: its files, tensors, metadata and configuration.

    Args:
        path: anything that `glue mix` takes as an expert: a file, an index of shards, a model or adapter folder.
        weights: which set of weights to read from a file that has several; None chooses by convention.
    Raises:
        UsageError: `path` does not exist.
        CheckpointError: it is not a checkpoint, or is damaged.
    """
    path = fetch(path)
    if is_adapter(path):
        adapter = read_adapter(path)
        checkpoint, config = adapter.checkpoint, dict(adapter.config)
    else:
        checkpoint = read_checkpoint(path, weights)
        config = read_object(checkpoint.folder / "config.json") if checkpoint.folder else {}
    check_any_has([checkpoint], weights)
    entries = list(checkpoint.entries.values())
    return {
        "schema": "glue.show/1",
        "checkpoint": checkpoint.name,
        **({"weights": checkpoint.weights} if checkpoint.weights else {}),
        "files": [
            {"path": str(file), "bytes": stamp.n_bytes}
            for file, stamp in zip(checkpoint.files, checkpoint.stamps, strict=True)
        ],
        "bytes": checkpoint.n_bytes,
        "parameters": sum(entry.n_elements for entry in entries if entry.dtype in FLOAT_DTYPES),
        "dtypes": _by_dtype(entries),
        "glue": checkpoint.glue,
        "metadata": _other_metadata(checkpoint),
        "config": config,
        "tensors": [
            {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape), "bytes": entry.n_bytes}
            for entry in entries
        ],
    }


def _by_dtype(entries: Iterable[TensorEntry]) -> dict[str, dict[str, int]]:
    """Return the number of tensors of each dtype and their bytes; the dtype with the most bytes comes first."""
    tensors, n_bytes = Counter[str](), Counter[str]()
    for entry in entries:
        tensors[entry.dtype] += 1
        n_bytes[entry.dtype] += entry.n_bytes
    return {dtype: {"tensors": tensors[dtype], "bytes": n_bytes[dtype]} for dtype, _ in n_bytes.most_common()}


def _other_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the metadata other than glue's own, and glue's too if they cannot be parsed."""
    return {key: text for key, text in checkpoint.metadata.items() if key != "glue" or not checkpoint.glue}
