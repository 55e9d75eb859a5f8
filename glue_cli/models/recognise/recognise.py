"""Which architecture the experts are of."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.models.recognise.configuration import by_configuration, by_metadata
from glue_cli.models.recognise.recognised import Recognised
from glue_cli.models.recognise.tensor_shapes import by_tensors


def recognise(experts: Sequence[Checkpoint], folder: Path) -> Recognised | None:
    """Return the architecture of the first expert; None where nothing tells it.

    What the expert says of itself goes before the configuration beside it, and that before its tensors.

    Args:
        folder: where the new spec will be.
    """
    first = experts[0]
    found = by_metadata(first, folder) or by_configuration(first, folder) or by_tensors(first)
    if found is None:
        return None
    said = [expert.glue.get("model") for expert in experts]
    if any(model != said[0] for model in said):
        doubt = f"model: the experts say different things of their models; this is what '{first.path}' says"
        return replace(found, doubts=(*found.doubts, doubt))
    return found
