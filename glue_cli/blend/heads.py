"""A head for the target's classes from experts with other classes: section 6 of the paper, heads that differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.blend.finite import check_finite
from glue_cli.blend.rows import weights_by_row
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.seeds import generator


@dataclass(frozen=True)
class _Rows:
    """One tensor of the head, with a row for each class of the target.

    Attributes:
        fresh: [C, ...], new rows for classes that no expert has.
        by_expert: [K, C, ...], the experts' rows, 0 for a class that the expert lacks.
    """

    fresh: Tensor
    by_expert: Tensor


class AlignedHead:
    """A head in which each class's row is the alpha-weighted mean over the experts that have the class.

    Args:
        names: the head's tensors, whose first dimension is the class.
        known: each expert's classes; if there are none at all, the whole head is reset.
        classes: the target's.
        seed: for the rows of classes that no expert has, drawn as `torch.nn.Linear` draws its weights.
    Raises:
        CheckpointError: a tensor is missing, its number of rows is not the expert's number of classes, its rows have
            another shape than the first expert's, or it has NaN.
    """

    def __init__(
        self,
        experts: Sequence[Checkpoint],
        names: Sequence[str],
        known: Sequence[Sequence[str]],
        classes: Sequence[str],
        *,
        seed: int,
    ) -> None:
        self._knows = torch.tensor([[name in own for name in classes] for own in known], dtype=torch.float64)  # [K, C]
        heads = [_read_head(expert, names, own, experts[0]) for expert, own in zip(experts, known, strict=True)]
        self.shapes = {name: (len(classes), *experts[0].entries[name].shape[1:]) for name in names}
        fan_in = max(torch.Size(shape[1:]).numel() for shape in self.shapes.values())
        self._rows: dict[str, _Rows] = {}
        for name, shape in self.shapes.items():
            draws = torch.rand(shape, generator=generator(seed, "head", name), dtype=torch.float64)
            by_expert = torch.zeros(len(experts), *shape, dtype=torch.float64)
            for rows, head, own in zip(by_expert, heads, known, strict=True):
                there = [c for c, class_name in enumerate(classes) if class_name in own]
                rows[there] = head[name][[own.index(classes[c]) for c in there]].double() if there else rows[there]
            self._rows[name] = _Rows((2 * draws - 1) * fan_in**-0.5, by_expert)

    def blend(self, alpha: Tensor) -> dict[str, Tensor]:
        """Return the head's tensors for coefficients alpha [K], float64; differentiable in alpha.

        If all experts that have a class have a coefficient of 0, they get equal weights.
        """
        weights = weights_by_row(alpha.double(), self._knows)  # [K, C]
        blended = {}
        for name, rows in self._rows.items():
            mean = torch.einsum("kc,kc...->c...", weights, rows.by_expert)
            is_known = self._knows.any(0).view(-1, *(1,) * (mean.dim() - 1))
            blended[name] = torch.where(is_known, mean, rows.fresh)
        return blended


def _read_head(
    expert: Checkpoint, names: Sequence[str], known: Sequence[str], first: Checkpoint
) -> Mapping[str, Tensor]:
    missing = [f"'{name}'" for name in names if name not in expert.entries]
    if missing and (known or expert is first):  # the new head is built like the first expert's
        raise CheckpointError(f"'{expert.path}' lacks tensors of the head", items=missing, hint="mend --head")
    if not known:
        return {}
    wanted = {name: (len(known), *first.entries[name].shape[1:]) for name in names}
    wrong = [
        f"'{name}' is {list(expert.entries[name].shape)}, wanted {list(shape)}"
        for name, shape in wanted.items()
        if expert.entries[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(f"'{expert.path}' knows {len(known)} classes, which its head does not fit", items=wrong)
    tensors = read_tensors(expert, names)
    for name, tensor in tensors.items():
        check_finite(expert, name, tensor)
    return tensors
