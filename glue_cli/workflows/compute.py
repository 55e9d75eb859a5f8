"""The device, precision and threads of a run: as the user chose, or the fastest in timings of the run's own work."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from glue_cli.data.loader import Batches, Examples
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.running.copies import copy_model
from glue_cli.running.device import Compute, find_device, likes_channels_last
from glue_cli.running.precision import choose_way
from glue_cli.running.timing import PRECISIONS, Precision, Way
from glue_cli.search.points import uniform_alpha
from glue_cli.search.protocol import Blends
from glue_cli.search.reach import Reach, measure_reach
from glue_cli.spec.schema import Spec
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.training import Settings, make_optimizer, training_step

MakeStep = Callable[[Compute], Callable[[Compute], object]]


def training_compute(
    spec: Spec, model: nn.Module, examples: Examples, settings: Settings, run: Run, *, is_sharded: bool
) -> Compute:
    """Choose what to train with, and set torch's threads; `precision: auto` times training steps of a copy.

    Args:
        is_sharded: whether the model does not fit one process; `auto` is then float32, and there are no copies.
    """
    if is_sharded:
        return Compute(find_device(run.device), "fp32" if spec.precision == "auto" else spec.precision)

    def make_step(compute: Compute) -> Callable[[Compute], object]:
        copied = compute.to_device(copy_model(model)).train()
        optimizer = make_optimizer(copied, settings)
        first = _first(examples, settings.batch_size)
        inputs, targets = first.on(compute).pick(torch.arange(len(first)))
        return lambda compute: training_step(copied, optimizer, inputs, targets, spec.loss, compute)

    return _choose("train", make_step, spec, model, examples, settings.batch_size, run)


def mixing_compute(spec: Spec, model: nn.Module, examples: Examples, run: Run) -> Compute:
    """Choose what to mix with, and set torch's threads; `precision: auto` times forward passes of a copy."""
    return _forward_compute(spec, model, examples, _first(examples, spec.mix.batch_size), spec.mix.batch_size, run)


def blending_compute(spec: Spec, blends: Blends, examples: Examples, run: Run) -> tuple[Compute, Reach | None]:
    """Choose what a search computes with, and set torch's threads.

    `precision: auto` times blends and their passes, and takes bfloat16 only where it shows how experts differ. Where
    every blend takes the time of reading the experts, `auto` is float32.

    Returns:
        In bfloat16, also how far blends have to be moved.
    """
    compute = fastest_for_blends(spec, blends, _first(examples, spec.mix.batch_size), run)
    if compute.precision == "fp32" or blends.n_experts == 1:
        return compute, None
    reach = _reach(blends, _first(examples, spec.mix.batch_size).on(compute), run)
    off_by = f"bfloat16 rounds by {100 * reach.rounding:.2g} % of the outputs' spread"
    if reach.is_fine:
        far = reach.radii.max().item()
        run.progress(Noted(f"{off_by}: changes are measured at up to {far:.2g} times the way to an expert"))
    elif spec.precision == "auto":
        run.progress(Noted(f"precision fp32: {off_by}, too much for these experts"))
        return replace(compute, precision="fp32"), None
    else:
        text = f"{off_by}, too much for these experts: --precision fp32 tells them apart"
        run.progress(Noted(text, warning=True))
    return compute, reach


def _reach(blends: Blends, examples: Batches, run: Run) -> Reach:
    """Return the reach that the first process measures, the same for all; several may hold the experts together."""
    own = measure_reach(blends, next(examples.in_order()))
    radii, rounding, is_short = run.ranks.from_first(lambda: (own.radii.tolist(), own.rounding, own.is_short))
    return Reach(torch.tensor(radii, dtype=torch.float64), rounding, is_short)


def fastest_for_blends(spec: Spec, blends: Blends, timed: Examples, run: Run) -> Compute:
    """Choose what blends are fastest with, as long as the experts are in memory, and set torch's threads.

    Args:
        timed: a batch such as they will run on.
    """
    if not blends.is_resident:
        precision: Precision = "fp32" if spec.precision == "auto" else spec.precision
        if spec.precision == "auto":
            run.progress(Noted("precision fp32: timing bf16 would pass over the experts; --precision bf16 sets it"))
        return replace(blends.compute, precision=precision)
    uniform = uniform_alpha(blends.n_groups, blends.n_experts)[None]

    def make_step(compute: Compute) -> Callable[[Compute], object]:
        batches = list(timed.on(compute).in_order())
        by_precision = {precision: blends.with_precision(precision) for precision in PRECISIONS}
        return lambda compute: deque(by_precision[compute.precision].outputs(uniform, batches, 0), maxlen=0)

    return _choose("blend", make_step, spec, blends.model, timed, len(timed), run)


def evaluation_compute(spec: Spec, model: nn.Module, examples: Examples, run: Run) -> Compute:
    """Choose what to evaluate with, and set torch's threads; `precision: auto` times forward passes of a copy."""
    first = examples.first_in_order
    return _forward_compute(spec, model, examples, first, len(first), run)


def _forward_compute(
    spec: Spec, model: nn.Module, examples: Examples, timed: Examples, batch_size: int, run: Run
) -> Compute:
    """Choose what to make forward passes with, timed on the examples `timed`."""

    def make_step(compute: Compute) -> Callable[[Compute], object]:
        copied = compute.to_device(copy_model(model))
        batches = timed.on(compute)
        return lambda compute: evaluate_model(copied, batches, loss=spec.loss, compute=compute)

    return _choose("forward", make_step, spec, model, examples, batch_size, run)


def _choose(
    kind: str, make_step: MakeStep, spec: Spec, model: nn.Module, examples: Examples, batch_size: int, run: Run
) -> Compute:
    compute = Compute(find_device(run.device), channels_last=likes_channels_last(model))

    def make_timed() -> Callable[[Precision], object]:
        step = make_step(compute)  # parameters and inputs are float32 in both precisions
        return lambda precision: step(replace(compute, precision=precision))

    def choose() -> Way:
        return choose_way(
            spec.precision,
            make_timed,
            work={
                "work": kind,
                "model": spec.model.model_dump(),
                "inputs": examples.dataset.shape,
                "batch_size": batch_size,
            },
            device=compute.device,
            threads_given=run.threads_given,
            cache=run.cache,
            progress=run.progress,
        )

    way = Way(*run.ranks.from_first(choose))  # in JSON, which the others get, it is a list
    torch.set_num_threads(way.n_threads)
    return replace(compute, precision=way.precision)


def _first(examples: Examples, n: int) -> Examples:
    return examples.subset(torch.arange(min(n, len(examples))))
