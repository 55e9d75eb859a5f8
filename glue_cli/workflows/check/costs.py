"""What a step of a search costs here, measured: equations (9) and (10) of the paper."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from glue_cli.data.target import Target
from glue_cli.foundation.errors import SpecError
from glue_cli.results.check import StepCosts
from glue_cli.running.forward import Batch
from glue_cli.running.losses import example_losses
from glue_cli.search.points import uniform_alpha
from glue_cli.search.protocol import Blends, MeanLoss
from glue_cli.spec.schema import Spec

# Rounds are repeated until they have taken so many seconds, but at least and at most so many times. Of each part of a
# step the median counts, as other programs come and go.
_SECONDS, _FEWEST, _MOST = 2.0, 3, 30
_TOGETHER = 4  # minibatches of a streamed pass, against one of a single minibatch

Seconds = dict[str, float]  # by the names that the parts of a step have in `StepCosts`


def measure_costs(spec: Spec, target: Target, blends: Blends, seed: int) -> StepCosts:
    """Time each part of a step by itself, on one minibatch: F, B, C_mix and C_inner.

    A loss of one blend takes C_mix + F; a gradient with respect to alpha takes C_mix + F + B + C_inner.

    Source: eq. (9), (10).
    """
    batch = target["train"].on(blends.compute).at_step(0, spec.mix.batch_size, seed)

    def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return example_losses(spec.loss, outputs, targets).mean()

    uniform = uniform_alpha(blends.n_groups, blends.n_experts)
    clock = _Clock(blends.compute.device)
    is_whole = not any(parameter.is_meta for parameter in blends.model.parameters())
    without_gradient = _forward_and_blend if is_whole else _streamed
    work = [without_gradient(blends, uniform, batch, clock)]
    if has_gradient := blends.has_gradient and _passes(lambda: blends.gradient(uniform, batch, 0, mean_loss)):
        work.append(_gradient(blends, uniform, batch, mean_loss, clock))
    rounds = _rounds(work)
    found = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
    if not has_gradient:
        return StepCosts(batch_size=len(batch[1]), **found, backward_s=None, inner_products_s=None, cheaper="spsa")
    differences = [_of_spsa(each) - _of_gradient(each) for each in rounds]
    low, _, high = statistics.quantiles(differences, n=4)
    return StepCosts(
        batch_size=len(batch[1]),
        **found,
        cheaper="spsa" if _of_spsa(found) < _of_gradient(found) else "fullgrad",  # eq. (10)
        spread_s=high - low,
    )


def _of_spsa(seconds: Seconds) -> float:
    return seconds["forward_s"] + seconds["blend_s"]


def _of_gradient(seconds: Seconds) -> float:
    return seconds["backward_s"] + seconds["inner_products_s"]


def _passes(gradient: Callable[[], object]) -> bool:
    """Tell whether a gradient can be taken; a module of the user's may do what has none."""
    try:
        gradient()
    except SpecError:
        return False
    return True


def _rounds(work: list[Callable[[], Seconds]]) -> list[Seconds]:
    """Return what the parts of the work take in each round of all of it, after one to warm up."""
    rounds: list[Seconds] = []
    for do in work:
        do()
    began = time.perf_counter()
    while len(rounds) < _FEWEST or (len(rounds) < _MOST and time.perf_counter() - began < _SECONDS):
        rounds.append({part: seconds for do in work for part, seconds in do().items()})
    return rounds


class _Clock:
    """Tells the seconds since it was last asked, when the device has done its work."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._last = device, 0.0

    def lap(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def _forward_and_blend(blends: Blends, alpha: Tensor, batch: Batch, clock: _Clock) -> Callable[[], Seconds]:
    """Time F and C_mix of blends that are made as a whole: once for the first of two minibatches."""
    written = blends.as_written({})

    def measure() -> Seconds:
        outputs = blends.outputs(alpha[None], [batch, batch], 0)
        next(outputs)
        clock.lap()
        next(outputs)
        forward_s = clock.lap()
        written.load(alpha)
        return {"forward_s": forward_s, "blend_s": clock.lap()}

    return measure


def _streamed(blends: Blends, alpha: Tensor, batch: Batch, clock: _Clock) -> Callable[[], Seconds]:
    """Time F and C_mix of blends that are made block by block, for all minibatches of a pass at once."""

    def run(n_batches: int) -> float:
        clock.lap()
        for _ in blends.outputs(alpha[None], [batch] * n_batches, 0):
            pass
        return clock.lap()

    def measure() -> Seconds:
        one_s = run(1)
        forward_s = min(one_s, max(0.0, run(_TOGETHER) - one_s) / (_TOGETHER - 1))
        return {"forward_s": forward_s, "blend_s": one_s - forward_s}

    return measure


def _gradient(
    blends: Blends, alpha: Tensor, batch: Batch, mean_loss: MeanLoss, clock: _Clock
) -> Callable[[], Seconds]:
    """Time B and C_inner, which follow the forward: autograd calls back when the backward has ended."""
    after_forward: list[float] = []

    def marked(outputs: Tensor, targets: Tensor) -> Tensor:
        def ended() -> None:
            after_forward.append(clock.lap())

        loss = mean_loss(outputs, targets)
        engine = torch.autograd.Variable._execution_engine
        loss.register_hook(lambda _: engine.queue_callback(ended))  # type: ignore[no-untyped-call]
        clock.lap()
        return loss

    def measure() -> Seconds:
        after_forward.clear()
        blends.gradient(alpha, batch, 0, marked)
        after_s = clock.lap()
        return {"backward_s": after_forward[0], "inner_products_s": after_s}

    return measure
