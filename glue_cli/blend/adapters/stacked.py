"""The factors of all adapters of a module side by side, so that two products apply any mix of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.mixing import plain_tensor, read_factors
from glue_cli.checkpoints.naming import Naming


@dataclass(frozen=True)
class StackedFactors:
    """The factors of K adapters for one module, of ranks r_k with the sum R.

    Attributes:
        a: [R, n_in]; of an embedding [R, vocabulary], of a convolution [R, n_in, *kernel]; float32.
        b: [n_out, R]; of a convolution [n_out, R, 1, ...]; float32.
        owners: the adapter that each of the R rows belongs to, int64 [R].
        scales: s_k of each row, float32 [R].
    """

    a: Tensor
    b: Tensor
    owners: Tensor
    scales: Tensor

    def to(self, device: torch.device) -> "StackedFactors":
        return StackedFactors(*(part.to(device) for part in (self.a, self.b, self.owners, self.scales)))

    def coefficients(self, alpha: Tensor) -> Tensor:
        """Return alpha_k s_k of each row, [R]; differentiable in alpha [K]."""
        return alpha[self.owners] * self.scales


def stack_factors(adapted: AdaptedBase, module: str) -> StackedFactors:
    """Return the factors of a module that at least one adapter updates, called as in `AdaptedBase.adapters`.

    Raises:
        CheckpointError: a factor has NaN or infinity.
    """
    downs, ups, owners, scales = [], [], [], []
    for k, adapter in enumerate(adapted.adapters):
        if update := adapter.updates.get(module):
            a, b = read_factors(adapter, update)
            downs.append(a.float())
            ups.append(b.float())
            owners += [k] * update.rank
            scales += [update.scale] * update.rank
    return StackedFactors(torch.cat(downs), torch.cat(ups, 1), torch.tensor(owners), torch.tensor(scales))


def plain_tensors(adapted: AdaptedBase, expert: int, naming: Naming) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that one adapter has in place of the base's, such as heads, without any update.

    Returns:
        pairs of the model's names and tensors, in the order of the names on disk.
    """
    plain = adapted.adapters[expert].plain.entries
    for name, source in sorted(naming.distinct(), key=lambda pair: pair[1].names):
        if source.names[0] in plain:
            yield name, plain_tensor(adapted.adapters[expert], source.names[0])
