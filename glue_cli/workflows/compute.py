"""The device and precision of a run: as the user wants, or the faster one by timing the run's own work."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from glue_cli.data.loader import Examples
from glue_cli.foundation.run import Run
from glue_cli.running.device import Compute, find_device, likes_channels_last
from glue_cli.running.precision import Precision, choose_precision
from glue_cli.spec.schema import Spec
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.training import Settings, make_optimizer, training_step

MakeStep = Callable[[Compute], Callable[[], object]]


def training_compute(spec: Spec, model: nn.Module, examples: Examples, settings: Settings, run: Run) -> Compute:
    """Return what to train with; `precision: auto` times training steps of a copy of the model."""

    def make_step(compute: Compute) -> Callable[[], object]:
        copied = compute.place(copy.deepcopy(model)).train()
        optimizer = make_optimizer(copied, settings)
        first = _first(examples, settings.batch_size)
        inputs, targets = first.on(compute).pick(torch.arange(len(first)))
        return lambda: training_step(copied, optimizer, inputs, targets, spec.loss, compute)

    return _choose("train", make_step, spec, model, examples, settings.batch_size, run)


def forward_compute(spec: Spec, model: nn.Module, examples: Examples, run: Run) -> Compute:
    """Return what to mix and evaluate with; `precision: auto` times forward passes of a copy of the model."""

    def make_step(compute: Compute) -> Callable[[], object]:
        copied = compute.place(copy.deepcopy(model))
        batches = _first(examples, spec.mix.batch_size).on(compute)
        return lambda: evaluate_model(copied, batches, loss=spec.loss, compute=compute)

    return _choose("forward", make_step, spec, model, examples, spec.mix.batch_size, run)


def _choose(
    kind: str, make_step: MakeStep, spec: Spec, model: nn.Module, examples: Examples, batch_size: int, run: Run
) -> Compute:
    device, channels_last = find_device(run.device), likes_channels_last(model)

    def at(precision: Precision) -> Compute:
        return Compute(device, precision, channels_last)

    precision = choose_precision(
        spec.precision,
        lambda precision: make_step(at(precision)),
        work={
            "work": kind,
            "model": spec.model.model_dump(),
            "inputs": examples.dataset.shape,
            "batch_size": batch_size,
        },
        device=device,
        cache=run.cache,
        progress=run.progress,
    )
    return at(precision)


def _first(examples: Examples, n: int) -> Examples:
    return examples.subset(torch.arange(min(n, len(examples))))
