"""Find out the architecture of the experts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.spelling import align_names
from glue_cli.foundation.batchnorm_names import COUNTER
from glue_cli.models.recognise.configuration import by_configuration, by_metadata
from glue_cli.models.recognise.recognised import Recognised
from glue_cli.models.recognise.tensor_shapes import by_tensors

_ASK = "glue check says whether they can be mixed"
_ALIKE = 0.75  # the share of tensors of one name and shape: heads and embeddings may differ, and a few buffers


def recognise(experts: Sequence[Checkpoint], folder: Path) -> Recognised | None:
    """Return the architecture of the first expert; None if it cannot be told.

    It is taken from the expert's metadata, else from the configuration beside it, else from its tensors.

    Args:
        folder: the folder in which the new spec will be.
    """
    first = experts[0]
    recognised = by_metadata(first, folder) or by_configuration(first, folder) or by_tensors(first)
    if recognised is None:
        return None
    recorded = [expert.glue.get("model") for expert in experts]
    if any(model != recorded[0] for model in recorded):
        doubts = [f"model: the experts record different models; this is the model of '{first.path}'"]
    else:
        doubts = [doubt for expert in experts[1:] if (doubt := _doubt_about(expert, first, folder))]
    return replace(recognised, doubts=(*recognised.doubts, *doubts))


def _doubt_about(expert: Checkpoint, first: Checkpoint, folder: Path) -> str | None:
    """Return what to tell of an expert that seems to be of another architecture than the first; else None."""
    named, wanted = (by_configuration(each, folder) for each in (expert, first))
    if named and wanted and named.arch != wanted.arch:
        return f"model: '{expert.path}' is of {named.arch}, '{first.path}' of {wanted.arch}: {_ASK}"
    sizes, wanted_sizes = (
        {name: entry.shape for name, entry in each.entries.items() if not name.endswith(COUNTER)}
        for each in (expert, first)
    )
    spelling = align_names(sizes, wanted_sizes)
    n_alike = sum(sizes[name] == wanted_sizes[own] for name, own in spelling.items())
    if n_alike < _ALIKE * max(len(sizes), len(wanted_sizes)):
        return f"model: '{expert.path}' has other tensors than '{first.path}': {_ASK}"
    return None
