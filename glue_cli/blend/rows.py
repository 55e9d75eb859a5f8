"""Tensors with a row for each class or token, where experts may lack a row or have it at another position."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glue_cli.blend.finite import check_finite
from glue_cli.blend.recipe import Recipe
from glue_cli.blend.tokens import TokenPlan, row_axis
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.tensors import read_tensors


def weights_by_row(alpha: Tensor, knows: Tensor) -> Tensor:
    """Return each expert's coefficient for each row [K, R]: its share of alpha among the experts that have the row.

    If all of these have a coefficient of 0, they get equal weights; a row that no expert has gets coefficients of 0.

    Args:
        alpha: [K], float64; the result is differentiable in it.
        knows: [K, R], 1 where an expert has a row, else 0; float64.
    """
    weights = alpha[:, None] * knows
    weights = torch.where(weights.sum(0) > 0, weights, knows)
    total = weights.sum(0)
    return weights / torch.where(total > 0, total, 1.0)


class AlignedRows:
    """Embeddings and output layers: a token's row is the alpha-weighted mean over the experts that have the token.

    Rows at the same position in all experts are blended like any other tensor, eq. (1).

    Args:
        recipe: the group of each tensor; one that it copies from an expert has that expert's rows where it has them.
    """

    def __init__(self, experts: Sequence[Checkpoint], plan: TokenPlan, recipe: Recipe) -> None:
        self._experts, self._plan, self._recipe = experts, plan, recipe
        self._held: dict[tuple[int, str], Tensor] | None = None
        places = torch.tensor(list(plan.odd.values())).T  # [K, E]
        self._odd, self._places = torch.tensor(list(plan.odd)), places.clamp(min=0)
        self._knows = (places >= 0).double()

    def hold(self) -> None:
        """Keep the experts' tensors in memory from now on, in their own dtypes, to make many blends."""
        self._held = {}

    def blend(self, alphas: Tensor) -> dict[str, Tensor]:
        """Return the tensors for alphas [G, K], float64; differentiable in alphas.

        Raises:
            CheckpointError: an expert has NaN or infinity, or a file cannot be read.
        """
        return {name: self._blend(name, self._alpha_of(name, alphas)) for name in self._plan.names}

    def _alpha_of(self, name: str, alphas: Tensor) -> Tensor:
        """Return a tensor's coefficients [K]; one-hot if it is copied."""
        if (k := self._recipe.copied_from.get(name)) is not None:
            return torch.eye(len(self._experts), dtype=torch.float64)[k]
        return alphas[self._recipe.group_of.get(name, 0)]

    def _blend(self, name: str, alpha: Tensor) -> Tensor:
        axis = row_axis(name)
        n_common = min(expert.entries[name].shape[axis] for expert in self._experts)
        weights = weights_by_row(alpha, self._knows)  # [K, E]
        wide = torch.float64 if any(e.entries[name].dtype == "F64" for e in self._experts) else torch.float32
        shape = list(self._recipe.made[name])
        n_rows = shape.pop(axis)
        common, odd = torch.zeros(n_common, *shape, dtype=wide), torch.zeros(len(self._odd), *shape, dtype=wide)
        for k, places in enumerate(self._places):
            rows = self._read(k, name).movedim(axis, 0)
            odd = odd + weights[k].to(wide).view(-1, *(1,) * len(shape)) * rows[places].to(wide)
            if alpha[k] != 0 or alpha.requires_grad:
                common = common + alpha[k] * rows[:n_common].to(wide)  # eq. (1)
        behind = torch.zeros(n_rows - n_common, *shape, dtype=wide)  # all of these are odd, and filled in below
        return torch.cat([common, behind]).index_copy(0, self._odd, odd).movedim(0, axis)

    def _read(self, k: int, name: str) -> Tensor:
        if self._held is not None and (k, name) in self._held:
            return self._held[k, name]
        expert = self._experts[k]
        rows = read_tensors(expert, [name])[name]
        check_finite(expert, name, rows)
        if self._held is not None:
            self._held[k, name] = rows
        return rows
