"""One blend in memory, tensor by tensor, in float32: for a model that is run, not written to a file."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.blend.constants import not_finite
from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.files import check_unchanged, open_files
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.checkpoints.tensors import read_tensor


def blend_tensors(
    experts: Sequence[Checkpoint],
    alphas: Sequence[Sequence[float]],
    recipe: Recipe,
    names: Collection[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the blend with coefficients `alphas` [G, K], eq. (1), but not those in `recipe.made`.

    Args:
        names: those to yield; None for all.

    Experts with a coefficient of 0 are not read. Tensors that are not floating point come from the first expert, or
    from the one that the recipe names.

    Raises:
        CheckpointError: an expert has NaN or infinity, or changes while it is read.
        ResourceError: too many files are open.
    """
    with ExitStack() as stack:
        readers = [_Reader(expert, stack.enter_context(open_files(expert))) for expert in experts]
        for name, dtype, _ in recipe.describe(experts):
            if name in recipe.made or (names is not None and name not in names):
                continue
            if dtype not in FLOAT_DTYPES:
                yield name, readers[recipe.copied_from.get(name, 0)].read(name)
                continue
            is_kept = name in recipe.copied_from
            weights = recipe.coefficients(name, alphas)
            (first, weight), *others = [
                (reader, weight) for reader, weight in zip(readers, weights, strict=True) if weight != 0
            ]
            own = first.read(name, is_kept=is_kept)
            total, is_alike = own.float() * weight, True
            for reader, weight in others:
                other = reader.read(name)
                total.add_(other.float(), alpha=weight)
                is_alike = is_alike and own.dtype == other.dtype and torch.equal(own, other)
            yield name, own.float() if is_alike else total
        for reader in readers:
            check_unchanged(reader.expert, reader.descriptors)


@dataclass(frozen=True)
class _Reader:
    """An expert and its open files."""

    expert: Checkpoint
    descriptors: Sequence[int]

    def read(self, name: str, *, is_kept: bool = False) -> Tensor:
        """Read a tensor; one that is copied unchanged may have infinities."""
        tensor = read_tensor(self.expert, self.descriptors, name)
        if tensor.is_floating_point():
            wrong = tensor[torch.isnan(tensor) if is_kept else ~torch.isfinite(tensor)]
            if len(wrong):
                raise not_finite(self.expert, name, wrong[0].item())
        return tensor
