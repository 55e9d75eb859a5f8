"""What a step of a search costs here, measured: equations (9) and (10) of the paper."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from glue_cli.data.target import Target
from glue_cli.foundation.errors import SpecError
from glue_cli.results.check import StepCosts
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.losses import example_losses
from glue_cli.search.points import uniform_alpha
from glue_cli.search.protocol import Blends, MeanLoss
from glue_cli.spec.schema import Spec

# Rounds are repeated until they have taken so many seconds, but at least and at most so many times; of each kind of
# work the fastest counts, since other programs only make it slower.
_SECONDS, _FEWEST, _MOST = 2.0, 3, 9


def measure_costs(spec: Spec, target: Target, blends: Blends, seed: int) -> StepCosts:
    """Time what a step consists of, on one minibatch: F, B, C_mix and C_inner.

    Two blends are made once for one minibatch, and once for two, which tells F from C_mix. A gradient with respect to
    alpha takes C_mix + F + B + C_inner, and one with respect to a model's parameters takes F + B. Where the model is
    never in memory as a whole, C_inner is counted in B.

    Source: eq. (9), (10).
    """
    batch = target["train"].on(blends.compute).at_step(0, spec.mix.batch_size, seed)
    uniform = uniform_alpha(blends.n_groups, blends.n_experts)
    pair = uniform.expand(2, *uniform.shape)

    def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return example_losses(spec.loss, outputs, targets).mean()

    def probe(n_batches: int) -> Callable[[], object]:
        return lambda: [outputs.sum().item() for outputs, _ in blends.outputs(pair, [batch] * n_batches, 0)]

    def gradient() -> object:
        return blends.gradient(uniform, batch, 0, mean_loss)

    work = {"one": probe(1), "two": probe(2)}
    has_gradient = _passes(gradient) if blends.has_gradient else False
    if has_gradient:
        work["gradient"] = gradient
        if not any(parameter.is_meta for parameter in blends.model.parameters()):
            work["backward"] = lambda: _differentiate(blends, batch, mean_loss)
    seconds = _fastest(work)
    forward_s = max(0.0, (seconds["two"] - seconds["one"]) / 2)
    blend_s = max(0.0, seconds["one"] / 2 - forward_s)
    if not has_gradient:
        return StepCosts(
            batch_size=len(batch[1]),
            forward_s=forward_s,
            backward_s=None,
            blend_s=blend_s,
            inner_products_s=None,
            cheaper="spsa",
        )
    after_forward_s = max(0.0, seconds["gradient"] - blend_s - forward_s)  # B + C_inner
    backward_s = min(after_forward_s, max(0.0, seconds.get("backward", math.inf) - forward_s))
    return StepCosts(
        batch_size=len(batch[1]),
        forward_s=forward_s,
        backward_s=backward_s,
        blend_s=blend_s,
        inner_products_s=after_forward_s - backward_s,
        cheaper="spsa" if forward_s + blend_s < after_forward_s else "fullgrad",  # eq. (10)
    )


def _passes(gradient: Callable[[], object]) -> bool:
    """Tell whether a gradient can be taken; a module of the user's may do what has none."""
    try:
        gradient()
    except SpecError:
        return False
    return True


def _fastest(work: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the seconds that each kind of work takes at best, in rounds of all kinds after one to warm up."""
    best = dict.fromkeys(work, math.inf)
    for do in work.values():
        do()
    began = time.perf_counter()
    for n_rounds in range(1, _MOST + 1):
        for name, do in work.items():
            before = time.perf_counter()
            do()
            best[name] = min(best[name], time.perf_counter() - before)
        if n_rounds >= _FEWEST and time.perf_counter() - began > _SECONDS:
            break
    return best


def _differentiate(blends: Blends, batch: Batch, mean_loss: MeanLoss) -> float:
    """Make a forward and a backward of the model, whatever its values are, and drop the gradients."""
    model = blends.model
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad(), blends.compute.autocast():
            loss = mean_loss(outputs_of(model, batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        model.requires_grad_(False)  # as the blends have it
    return sum(gradient.sum().item() for gradient in gradients if gradient is not None)
