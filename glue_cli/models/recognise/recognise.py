"""Find out the architecture of the experts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.models.recognise.configuration import by_configuration, by_metadata
from glue_cli.models.recognise.recognised import Recognised
from glue_cli.models.recognise.tensor_shapes import by_tensors


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
        doubt = f"model: the experts record different models; this is the model of '{first.path}'"
        return replace(recognised, doubts=(*recognised.doubts, doubt))
    return recognised
