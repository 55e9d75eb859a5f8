"""Tensors whose rows stand for something, a class or a token, that not every expert knows or has at the same place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from glue_cli.blend.recipe import Recipe
from glue_cli.blend.tokens import TokenPlan
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError


def weights_by_row(alpha: Tensor, knows: Tensor) -> Tensor:
    """Return each expert's coefficient for each row [K, R]: alpha's share among the experts that know the row.

    Where all of these have a coefficient of 0, they count alike; a row that nobody knows has coefficients of 0.

    Args:
        alpha: [K], float64; the result is differentiable in it.
        knows: [K, R], 1 where an expert knows a row, else 0; float64.
    """
    weights = alpha[:, None] * knows
    weights = torch.where(weights.sum(0) > 0, weights, knows)
    total = weights.sum(0)
    return weights / torch.where(total > 0, total, 1.0)


class AlignedRows:
    """Embeddings and output layers whose row of a token is the alpha-weighted mean over the experts that know it.

    Rows that lie alike in all experts are blended as any other tensor is, eq. (1).

    Args:
        recipe: whose coefficients each tensor gets; what it copies from an expert is that expert's, as far as it goes.
    """

    def __init__(self, experts: Sequence[Checkpoint], plan: TokenPlan, recipe: Recipe) -> None:
        self._experts, self._plan, self._recipe = experts, plan, recipe
        self._held: dict[tuple[int, str], Tensor] | None = None
        places = torch.tensor(list(plan.odd.values())).T  # [K, E]
        self._odd, self._places = torch.tensor(list(plan.odd)), places.clamp(min=0)
        self._knows = (places >= 0).double()

    def hold(self) -> None:
        """Keep the experts' tensors in memory from now on, in their own dtypes, for blends one after another."""
        self._held = {}

    def blend(self, alphas: Tensor) -> dict[str, Tensor]:
        """Return the tensors for alphas [G, K], float64; differentiable in alphas.

        Raises:
            CheckpointError: an expert has NaN or infinity, or a file cannot be read.
        """
        return {name: self._blend(name, self._alpha_of(name, alphas)) for name in self._plan.names}

    def _alpha_of(self, name: str, alphas: Tensor) -> Tensor:
        """Return a tensor's coefficients [K]; one-hot where it is copied."""
        if (k := self._recipe.copied_from.get(name)) is not None:
            return torch.eye(len(self._experts), dtype=torch.float64)[k]
        return alphas[self._recipe.group_of.get(name, 0)]

    def _blend(self, name: str, alpha: Tensor) -> Tensor:
        n_common = min(expert.entries[name].shape[0] for expert in self._experts)
        weights = weights_by_row(alpha, self._knows)
        wide = torch.float64 if any(e.entries[name].dtype == "F64" for e in self._experts) else torch.float32
        shape = self._recipe.made[name]
        blended = torch.zeros(shape, dtype=wide)
        odd = torch.zeros(len(self._odd), *shape[1:], dtype=wide)
        for k, (weight, by_row) in enumerate(zip(alpha, weights, strict=True)):
            rows = self._read(k, name)
            if weight != 0 or weight.requires_grad:
                part = torch.zeros(shape, dtype=wide)
                part[:n_common] = rows[:n_common].to(wide)
                blended = blended + weight * part
            odd = odd + by_row.to(wide).view(-1, *(1,) * (len(shape) - 1)) * rows[
                self._places[k].clamp(max=len(rows) - 1)
            ].to(wide)
        return blended.index_copy(0, self._odd, odd)

    def _read(self, k: int, name: str) -> Tensor:
        if self._held is not None and (k, name) in self._held:
            return self._held[k, name]
        expert = self._experts[k]
        rows = read_tensors(expert, [name])[name]
        if not torch.isfinite(rows).all():
            wrong = rows[~torch.isfinite(rows)][0].item()
            raise CheckpointError(f"{expert.path}: '{name}' has {wrong}", hint="leave this expert out, or mend it")
        if self._held is not None:
            self._held[k, name] = rows
        return rows
