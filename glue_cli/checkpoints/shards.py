"""Tell the parts of one checkpoint from checkpoints, by their names and tensors. Needs no torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.errors import CheckpointError, UsageError

_PART = re.compile(r"(?P<whole>.+)-\d{3,}-of-(?P<n>\d{3,})(?P<ending>\.\w+)")  # model-00001-of-00002.safetensors
# By tensor-parallel processes, each with a share of every tensor: of Llama, and of DeepSpeed.
_PARALLEL = re.compile(r"(?P<before>consolidated\.|mp_rank_)(?P<number>\d+)(?P<after>[._].+)")


def refuse_parallel(path: Path) -> None:
    """Refuse a file by one of several parallel processes, beside which those of others lie: it has parts of tensors.

    Raises:
        CheckpointError: it is one.
    """
    if not (own := _PARALLEL.fullmatch(path.name)):
        return
    others = [
        other
        for other in sorted(path.parent.iterdir())
        if (part := _PARALLEL.fullmatch(other.name))
        and (part["before"], part["after"]) == (own["before"], own["after"])
    ]
    if len(others) > 1:
        raise CheckpointError(
            f"'{path}' holds one of {len(others)} shares of a model's tensors",
            items=[str(other) for other in others],
            hint="join them with the library that wrote them, or name the model in the format of transformers",
        )


def refuse_parts(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse two parts of one checkpoint as two checkpoints: by their names, and as they share no tensor.

    Raises:
        UsageError: there are two.
    """
    seen: dict[tuple[Path, str], Checkpoint] = {}
    for checkpoint in checkpoints:
        path = checkpoint.path
        if not (part := _PART.fullmatch(path.name)):
            continue
        index = path.with_name(f"{part['whole']}{part['ending']}.index.json")
        first = seen.setdefault((index, part["n"]), checkpoint)
        other = first.path
        if other != path and not first.entries.keys() & checkpoint.entries.keys():
            raise UsageError(
                f"'{other}' and '{path}' are parts of one checkpoint, and not two",
                hint=f"name its index '{index}'" if index.exists() else f"name the folder '{path.parent}'",
            )


def refuse_without_index(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a folder whose weights files are all parts of one checkpoint: the index that says which has what is gone.

    Raises:
        CheckpointError: they are.
    """
    parts = [_PART.fullmatch(file.name) for file in files]
    indices = {f"{part['whole']}{part['ending']}.index.json" for part in parts if part}
    if not files or not all(parts) or len(indices) > 1:
        return
    raise CheckpointError(
        f"the folder '{folder}' holds parts of a checkpoint, and not their index '{indices.pop()}'",
        items=[str(file) for file in files],
        hint="copy the index beside them",
    )
