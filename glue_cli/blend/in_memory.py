"""One blend in memory, a tensor at a time, in float32: for a model that is run rather than written."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError


def blend_tensors(
    experts: Sequence[Checkpoint], alphas: Sequence[Sequence[float]], recipe: Recipe
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the blend with coefficients `alphas` [G, K], eq. (1), those that are made apart left out.

    Experts with a coefficient of 0 are not read. Tensors that are not floating point are the first expert's, or whose
    the recipe says.

    Raises:
        CheckpointError: an expert has NaN or infinity.
    """
    for name, dtype, _ in recipe.describe(experts):
        if name in recipe.made:
            continue
        if dtype not in FLOAT_DTYPES:
            yield name, _read(experts[recipe.copied_from.get(name, 0)], name)
            continue
        taking = [(k, weight) for k, weight in enumerate(recipe.coefficients(name, alphas)) if weight != 0]
        total = _read(experts[taking[0][0]], name).float() * taking[0][1]
        for k, weight in taking[1:]:
            total.add_(_read(experts[k], name).float(), alpha=weight)
        yield name, total


def _read(expert: Checkpoint, name: str) -> Tensor:
    tensor = read_tensors(expert, [name])[name]
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        wrong = tensor[~torch.isfinite(tensor)][0].item()
        raise CheckpointError(f"{expert.path}: '{name}' has {wrong}", hint="leave this expert out, or mend it")
    return tensor
