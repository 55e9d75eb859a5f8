"""The head of a pretrained start for the classes of other data: its rows in their order, or fresh ones."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glue_cli.checkpoints.classes import class_names_of, listed, match_classes
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.models.backbone import backbone_of
from glue_cli.models.libraries.transformers_names import is_of_transformers


@dataclass(frozen=True)
class HeadStart:
    """What becomes of a pretrained head.

    Attributes:
        names: its tensors, by the model's names; none where it is taken as it is.
        order: which of its rows each of the model's is; None where they are fresh.
        note: what the user is to know of it.
    """

    names: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    note: str = ""

    @property
    def is_fresh(self) -> bool:
        return bool(self.names) and self.order is None

    @torch.no_grad()
    def sort(self, tensors: Mapping[str, Tensor]) -> None:
        """Bring the rows into their order, in place, once they are loaded."""
        if self.order is not None:
            for name in self.names:
                tensors[name].copy_(tensors[name][list(self.order)])


def plan_head_start(
    model: nn.Module, checkpoint: Checkpoint, loaded: Collection[str], wanted: Sequence[str] | None
) -> HeadStart:
    """Say what becomes of a checkpoint's head where the data have the classes `wanted`.

    Where the checkpoint knows all of them, row c becomes the one for class c, and the rows for other classes follow.
    Else the whole head is fresh.

    Args:
        loaded: the model's tensors that come from the checkpoint.
        wanted: names by number; None where only the numbers are known, which then count.
    """
    known = class_names_of(checkpoint)
    if not known or not wanted:
        return HeadStart()
    places = [place for place in match_classes(wanted, known) if place is not None]
    if places == list(range(len(wanted))):
        return HeadStart()
    names = _find_head(model, loaded, len(known))
    if not names:  # another head, which the checkpoint's does not fit
        return HeadStart()
    what = f"{checkpoint.path} was trained for the classes {listed(known)}, and the data have {listed(wanted)}"
    if len(places) < len(wanted):
        return HeadStart(names, None, f"{what}: the head ({names[0]}) is fresh")
    order = (*places, *(row for row in range(len(known)) if row not in places))
    return HeadStart(names, order, f"{what}: the rows of the head ({names[0]}) are matched by name")


def _find_head(model: nn.Module, loaded: Collection[str], n_outputs: int) -> tuple[str, ...]:
    """Return what is loaded beyond the backbone and has so many rows; in transformers that of the last layer alone."""
    is_backbone = backbone_of(model)
    found = [
        name
        for name, tensor in model.state_dict().items()
        if name in loaded and tensor.shape[:1] == (n_outputs,) and not is_backbone(name)
    ]
    if found and is_of_transformers(model):  # whose heads may have a hidden layer of their own
        last = found[-1].rpartition(".")[0]
        found = [name for name in found if name.rpartition(".")[0] == last]
    return tuple(found)
