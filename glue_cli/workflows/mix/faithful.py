"""Whether a search runs the model that the blend's file will be loaded into."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.seeds import seeded
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.search.points import uniform_alpha
from glue_cli.search.protocol import Blends
from glue_cli.workflows.fits import KEPT_ELSEWHERE
from glue_cli.workflows.mix.experts_interface import Experts

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec

_N_EXAMPLES = 4
_MOST_ELEMENTS = 1 << 26  # a model beside the search's own takes up to 256 MiB
_MOST_STREAMED = 1 << 22  # to this, the memory that a block takes is no smaller
_ROUNDING = 1e-3  # of the largest output; what a module keeps of other weights makes outputs of their own
_BY_BLOCK = "give --bank device, where no forwards take turns; or "
_STEPS = 10  # of a dtype; a model that is built in bfloat16 rounds what it loads, and blends are made before that


@torch.no_grad()
def check_is_faithful(experts: Experts, spec: "Spec", blends: Blends, examples: Examples) -> None:
    """Check that two blends have the outputs of models that are built and loaded as from files.

    They differ where a module reaches its weights otherwise than by the names that they are registered under, such as
    by what it has kept of an earlier blend; or where forwards that take turns share more than what they are given.
    Models of more than 67 million numbers, or 4 million where the experts are not in memory, and random ones are not
    checked.

    Args:
        blends: in float32, with the blended statistics of BatchNorm.
    Raises:
        SpecError: one has others.
    """
    most = _MOST_ELEMENTS if blends.is_resident else _MOST_STREAMED
    if sum(each.numel() for each in blends.model.parameters()) > most:
        return
    uniform = uniform_alpha(blends.n_groups, blends.n_experts)
    batch = next(examples.on(blends.compute).in_order(_N_EXAMPLES))
    wanted = [_wanted(experts, spec, blends, alpha, batch) for alpha in (uniform, _skewed(uniform))]
    for order in ([0, 1], [1, 0]):  # of forwards that take turns, the second time each is another blend's
        alphas = torch.stack([(uniform, _skewed(uniform))[k] for k in order])
        for k, (found, _) in zip(order, blends.outputs(alphas, [batch], 0), strict=True):
            if one := wanted[k]:
                one.check(found.float(), by_block=not blends.has_gradient)


def _skewed(uniform: Tensor) -> Tensor:
    """Return alpha [G, K] with more of the first expert."""
    alpha = uniform / 2
    alpha[:, 0] += 0.5
    return alpha


class _Wanted(NamedTuple):
    """The outputs of a model that was loaded, and what the same ones may be off by, relative to the largest."""

    outputs: Tensor
    rounding: float

    def check(self, found: Tensor, *, by_block: bool) -> None:
        scale = self.outputs.abs().max()
        if not (off := (found - self.outputs).abs().max()) <= self.rounding * scale:
            raise SpecError(
                "the model computes something else with a blend in its tensors than with the blend's file loaded: its"
                f" outputs are off by {off:.2g}, the largest is {scale:.2g}",
                hint=f"{_BY_BLOCK if by_block else ''}{KEPT_ELSEWHERE}",
            )


def _wanted(experts: Experts, spec: "Spec", blends: Blends, alpha: Tensor, batch: Batch) -> _Wanted | None:
    """Return what a blend's outputs have to be; None if they are random or not finite."""
    built = experts.model(spec, alpha)
    rounding = max(_ROUNDING, *(_STEPS * torch.finfo(each.dtype).eps for each in _floating(built)))
    model = blends.compute.to_device(built).float().eval()  # as blends are
    outputs, again = (_outputs_by(seed, model, batch, blends.compute.device) for seed in (0, 1))
    is_sure = torch.equal(outputs, again) and bool(outputs.isfinite().all())
    return _Wanted(outputs, rounding) if is_sure else None


def _floating(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.parameters() if tensor.is_floating_point()] or [torch.zeros(1)]


def _outputs_by(seed: int, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    with seeded(seed, device):
        return outputs_of(model, batch[0]).float()
