"""Choose alpha, blend the experts, write the prior."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from glue_cli import __version__
from glue_cli.core.bank import load_bank
from glue_cli.core.blend import blend_files
from glue_cli.core.checkpoint import Checkpoint
from glue_cli.core.device import find_device
from glue_cli.core.errors import SpecError
from glue_cli.core.objective import BlendObjective, Cost
from glue_cli.core.progress import Advanced, Finished, Started
from glue_cli.core.spec import Spec
from glue_cli.methods import METHODS
from glue_cli.methods.descent import Learned, StepRecord
from glue_cli.models import build_model
from glue_cli.workflows.compute import forward_compute
from glue_cli.workflows.examples import read_target
from glue_cli.workflows.history import Write, writing_history
from glue_cli.workflows.plan import MixPlan, Run
from glue_cli.workflows.training import evaluate_model
from glue_cli.workflows.weights import check_fits_data, check_fits_model, load_model


def mix(plan: MixPlan, run: Run) -> dict[str, Any]:
    """Choose alpha by the plan's method and write the blend; return what `--json` prints.

    Raises:
        CheckpointError: an expert is damaged, or does not fit the spec's model.
        SpecError, DataError: the spec, the model and the data do not fit each other.
        NumericalError: a loss is not finite.
        ResourceError: the output cannot be written, or the device is not there.
    """
    began = time.perf_counter()
    find_device(run.device)  # a missing GPU shows before the data are read
    with writing_history(run.history, command="mix", method=plan.method) as write:
        account = _choose(plan, run, write)
    alpha: list[float] = account["alpha"]

    def describe(hashes: Sequence[str | None]) -> dict[str, Any]:
        return {
            "glue": __version__,
            "kind": "prior",
            **_shared_by_all(plan.experts),
            "method": plan.method,
            "alpha": alpha,
            "experts": [
                {"name": expert.path.name, "sha256": digest, "examples": expert.glue.get("examples")}
                for expert, digest in zip(plan.experts, hashes, strict=True)
            ],
            "seed": plan.seed,
            "settings": account["settings"],
        }

    hashes = blend_files(
        plan.experts,
        alpha,
        plan.output,
        describe,
        dtype=plan.dtype,
        memory_bytes=plan.memory_bytes,
        hashing=plan.hashing,
        progress=run.progress,
    )
    sizes = plan.sizes or [expert.glue.get("examples") for expert in plan.experts]
    return {
        "schema": "glue.mix/1",
        "method": plan.method,
        "alpha": alpha,
        "experts": [
            {"path": str(expert.path), "sha256": digest, "examples": size}
            for expert, digest, size in zip(plan.experts, hashes, sizes, strict=True)
        ],
        "output": str(plan.output),
        "loss": account.get("loss", {}),
        "cost": {**account["cost"], "wall_s": time.perf_counter() - began, "peak_bytes": _peak_bytes(run)},
        **account.get("more", {}),
    }


def _choose(plan: MixPlan, run: Run, write: Write) -> dict[str, Any]:
    """Return alpha with its account: settings, cost, and where there is a search, losses and how it ended."""
    nothing = {"settings": {}, "cost": asdict(Cost())}
    if plan.alpha is not None:
        return {"alpha": list(plan.alpha), **nothing}
    method = METHODS[plan.method]
    if method.needs == "count":
        return {"alpha": method.load()(len(plan.experts)), **nothing}
    if method.needs == "sizes":
        return {"alpha": method.load()(plan.sizes), **nothing}
    assert plan.spec is not None
    if method.needs == "accuracies":
        return _choose_by_accuracy(plan, plan.spec, run, write)
    return _search(plan, plan.spec, run, write)


def _choose_by_accuracy(plan: MixPlan, spec: Spec, run: Run, write: Write) -> dict[str, Any]:
    if spec.loss != "cross_entropy":
        raise SpecError(
            f"--method {plan.method} needs accuracies, which loss: {spec.loss} does not have", hint="use --method spsa"
        )
    val = read_target(spec, ["val"], run)["val"]
    accuracies: list[float] = []
    n_forwards = 0
    run.progress(Started("evaluate experts", len(plan.experts), "experts"))
    for expert in plan.experts:
        model = load_model(spec, expert)
        if not accuracies:
            check_fits_data(model, val, spec.loss, spec.data.root)
            compute = forward_compute(spec, model, val, run)
            batches = val.on(compute)
        figures = evaluate_model(compute.place(model), batches, loss=spec.loss, compute=compute)
        accuracies.append(figures["accuracy"])
        write({"expert": len(accuracies) - 1, **{f"val_{name}": value for name, value in figures.items()}})
        n_forwards += batches.n_in_order
        run.progress(Advanced(len(accuracies)))
    run.progress(Finished())
    cost = Cost(forwards=n_forwards, validation_forwards=n_forwards, examples=len(accuracies) * len(val))
    return {
        "alpha": METHODS[plan.method].load()(accuracies),
        "settings": {"precision": compute.precision},
        "cost": asdict(cost),
        "more": {"val_accuracies": accuracies, "precision": compute.precision},
    }


def _search(plan: MixPlan, spec: Spec, run: Run, write: Write) -> dict[str, Any]:
    settings = spec.mix
    model = build_model(spec.model.arch, spec.model.args, seed=0)
    for expert in plan.experts:
        check_fits_model(model, expert, spec)
    target = read_target(spec, ["train", "val"], run)
    for examples in target.values():
        check_fits_data(model, examples, spec.loss, spec.data.root)
    compute = forward_compute(spec, model, target["train"], run)
    train, val = target["train"].on(compute), target["val"].on(compute)
    objective = BlendObjective(
        compute.place(model),
        load_bank(plan.experts, device=compute.device, channels_last=compute.channels_last),
        loss=spec.loss,
        train_batch=lambda step: train.at_step(step, settings.batch_size, plan.seed),
        validation_batches=val.in_order,
        compute=compute,
        seed=plan.seed,
        bn_gradient=settings.bn_gradient,
    )
    run.progress(Started(f"mix by {plan.method}", settings.steps, "steps"))
    val_loss = None

    def observe(record: StepRecord) -> None:
        nonlocal val_loss
        val_loss = record.val_loss if record.val_loss is not None else val_loss
        write({**asdict(record), "forwards": objective.cost.forwards})
        figures = {name: x for name, x in (("loss", record.loss), ("val loss", val_loss)) if x is not None}
        run.progress(Advanced(record.step, figures, tuple(record.alpha)))

    learned: Learned = METHODS[plan.method].load()(objective, settings, seed=plan.seed, observe=observe)
    run.progress(Finished())
    return {
        "alpha": learned.alpha,
        "settings": {"mix": settings.model_dump(), "loss": spec.loss, "precision": compute.precision},
        "loss": {"val": learned.val_loss, "val_uniform": learned.val_loss_start},
        "cost": asdict(objective.cost),
        "more": {"steps": learned.n_steps, "stopped": learned.stopped, "precision": compute.precision},
    }


def _shared_by_all(experts: Sequence[Checkpoint]) -> dict[str, Any]:
    """Return what all experts say of themselves alike: their model and class names."""
    shared = {}
    for key in ("model", "class_names"):
        said = [expert.glue.get(key) for expert in experts]
        if said[0] is not None and all(value == said[0] for value in said):
            shared[key] = said[0]
    return shared


def _peak_bytes(run: Run) -> int:
    """Return the most memory that the run has held: on the GPU where it used one, else the process's resident set."""
    if torch.cuda.is_available() and run.device != "cpu":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
