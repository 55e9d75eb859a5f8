"""Fit the head of a pretrained start to the classes of the data: reorder its rows, or start with a fresh head."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glue_cli.checkpoints.classes import class_names_of, listed, match_classes
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.models.backbone import backbone_of
from glue_cli.models.libraries.transformers_names import is_of_transformers
from glue_cli.models.tensors import tensors_of


@dataclass(frozen=True)
class HeadStart:
    """How training starts with a pretrained head.

    Attributes:
        names: the model's names of the head's tensors; empty if the head is used unchanged.
        order: for each row of the new head, the row of the pretrained one; None if the new head is fresh.
        note: a message about it for the user.
    """

    names: tuple[str, ...] = ()
    order: tuple[int, ...] | None = None
    note: str = ""

    @property
    def is_fresh(self) -> bool:
        return bool(self.names) and self.order is None

    @torch.no_grad()
    def sort(self, tensors: Mapping[str, Tensor]) -> None:
        """Reorder the rows of the loaded tensors, in place."""
        if self.order is not None:
            for name in self.names:
                tensors[name].copy_(tensors[name][list(self.order)])


def plan_head_start(
    model: nn.Module, checkpoint: Checkpoint, loaded: Collection[str], wanted: Sequence[str] | None
) -> HeadStart:
    """Decide how a checkpoint's head is used for data with the classes `wanted`.

    If the checkpoint has all of these classes, row c becomes the row of class c, followed by the rows of the other
    classes. Otherwise the whole head is fresh.

    Args:
        loaded: the names of the model's tensors that are loaded from the checkpoint.
        wanted: the classes' names in the order of their numbers; None if the data have no names, in which case the
            rows keep their order.
    """
    known = class_names_of(checkpoint)
    if not known or not wanted:
        return HeadStart()
    rows = [row for row in match_classes(wanted, known) if row is not None]
    if rows == list(range(len(wanted))):
        return HeadStart()
    names = _find_head(model, loaded, len(known))
    if not names:  # the model's head has another shape, so that the checkpoint's is not loaded
        return HeadStart()
    what = f"{checkpoint.path} was trained for the classes {listed(known)}, and the data have {listed(wanted)}"
    if len(rows) < len(wanted):
        return HeadStart(names, None, f"{what}: the head ({names[0]}) is fresh")
    order = (*rows, *(row for row in range(len(known)) if row not in rows))
    return HeadStart(names, order, f"{what}: the rows of the head ({names[0]}) are matched by name")


def _find_head(model: nn.Module, loaded: Collection[str], n_outputs: int) -> tuple[str, ...]:
    """Return the loaded tensors with `n_outputs` rows that are not in the backbone.

    For a model of transformers, only those of the last layer: its head may have a hidden layer before it.
    """
    is_backbone = backbone_of(model)
    names = [
        name
        for name, tensor in tensors_of(model).items()
        if name in loaded and tensor.shape[:1] == (n_outputs,) and not is_backbone(name)
    ]
    if names and is_of_transformers(model):
        last = names[-1].rpartition(".")[0]
        names = [name for name in names if name.rpartition(".")[0] == last]
    return tuple(names)
