"""Inner products between the updates of low-rank adapters, from their factors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from glue_cli.blend.adapters.adapter import Adapter
from glue_cli.checkpoints.tensors import read_tensors


def update_products(adapters: Sequence[Adapter]) -> Tensor:
    """Return the inner products <s_i B_i A_i, s_j B_j A_j> of K adapters' updates, summed over modules.

    They are computed as s_i s_j <B_i^T B_j, A_i A_j^T>, so that no update is made as a whole.

    Returns:
        [K, K], float64.

    Cost: every factor is read once; memory for the factors of one module of all adapters.
    """
    gram = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for module in dict.fromkeys(module for adapter in adapters for module in adapter.updates):
        factors = {k: _factors(adapter, module) for k, adapter in enumerate(adapters) if module in adapter.updates}
        gram += _products(factors, len(adapters))
    return gram


def _factors(adapter: Adapter, module: str) -> tuple[Tensor, Tensor]:
    """Return s B [n_out, rank] and A [rank, inputs], in float64."""
    update = adapter.updates[module]
    tensors = read_tensors(adapter.checkpoint, [update.a.name, update.b.name])
    return tensors[update.b.name].flatten(1).double() * update.scale, tensors[update.a.name].flatten(1).double()


def _products(factors: Mapping[int, tuple[Tensor, Tensor]], n_adapters: int) -> Tensor:
    gram = torch.zeros(n_adapters, n_adapters, dtype=torch.float64)
    for i, (b, a) in factors.items():
        for j, (other_b, other_a) in factors.items():
            if i <= j and b.shape[0] == other_b.shape[0] and a.shape[1] == other_a.shape[1]:
                gram[i, j] = gram[j, i] = ((b.T @ other_b) * (a @ other_a.T)).sum()
    return gram
