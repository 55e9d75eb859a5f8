"""What a checkpoint says of itself, from its header alone. Needs no torch, but for the files that torch wrote."""

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
        path: whatever is an expert to `glue mix`: a file, an index of shards, a model folder or an adapter's.
        weights: which set of weights is meant in a file that has several; None leaves it to convention.
    Raises:
        UsageError: there is nothing at `path`.
        CheckpointError: it is no checkpoint, or a damaged one.
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
            {"path": str(file), "bytes": n_bytes}
            for file, (n_bytes, _) in zip(checkpoint.files, checkpoint.stamps, strict=True)
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
    """Return how many tensors there are of each dtype, and their bytes; the dtype with most bytes first."""
    tensors, n_bytes = Counter[str](), Counter[str]()
    for entry in entries:
        tensors[entry.dtype] += 1
        n_bytes[entry.dtype] += entry.n_bytes
    return {dtype: {"tensors": tensors[dtype], "bytes": n_bytes[dtype]} for dtype, _ in n_bytes.most_common()}


def _other_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the metadata beside glue's own; glue's too where it cannot be read."""
    return {key: text for key, text in checkpoint.metadata.items() if key != "glue" or not checkpoint.glue}
