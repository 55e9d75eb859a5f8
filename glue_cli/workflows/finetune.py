"""Finetune all parameters on the target data, from a checkpoint or from scratch."""

import time
from typing import Any

from torch import nn

from glue_cli import __version__
from glue_cli.checkpoints.classes import class_names_of
from glue_cli.data.classes import Classes
from glue_cli.data.target import Target
from glue_cli.foundation.run import Run
from glue_cli.foundation.threads import restored_threads
from glue_cli.models.weights import initial_model, load_model
from glue_cli.plans.finetune import FinetunePlan
from glue_cli.results.finetune import FinetuneResult, epoch_of
from glue_cli.results.provenance import origin_of
from glue_cli.running.device import find_device, make_repeatable
from glue_cli.spec.schema import Spec
from glue_cli.workflows.compute import training_compute
from glue_cli.workflows.finetuning import Finetuning
from glue_cli.workflows.fits import check_fits_data, warn_of_neighbours
from glue_cli.workflows.inputs import inputs_of
from glue_cli.workflows.keeper import Keeper
from glue_cli.workflows.learning_rates import plan_trial
from glue_cli.workflows.resuming import keeping
from glue_cli.workflows.save import save_model, warn_of_left_out
from glue_cli.workflows.spreading import must_shard, spread_training
from glue_cli.workflows.training import with_lr

_OTHER_HEAD = "to train another head on its other layers, set experts.init to it and use --from-scratch"


@restored_threads()
def finetune(plan: FinetunePlan, run: Run) -> FinetuneResult:
    """Train on the target's training data, and write the checkpoint.

    Epoch 0 of the history is the start itself. Test figures, if tracked, are never used to select anything. If the
    trial uses folds, the training uses the validation examples too, and the validation figures are those of the folds.

    Raises:
        CheckpointError: the checkpoint does not fit the spec's model.
        SpecError, DataError: the spec, the model and the data do not fit each other.
        NumericalError: the loss diverges.
        ResourceError: the output cannot be written, or the device is not available.
    """
    with keeping(plan.destination.result, run) as keeper:
        return _finetune(plan, run, keeper)


def described(plan: FinetunePlan) -> dict[str, Any]:
    """Return the part of the checkpoint's metadata that is known before the work begins."""
    spec = plan.spec
    return {
        "glue": __version__,
        "kind": "finetuned",
        "model": spec.model.model_dump(),
        "start": plan.checkpoint.short_name if plan.checkpoint else "scratch",
        **({"weights": plan.checkpoint.weights} if plan.checkpoint and plan.checkpoint.weights else {}),
        "seed": spec.seed,
        "settings": {"loss": spec.loss, "finetune": spec.finetune.model_dump()},
    }


def described_in_full(plan: FinetunePlan, run: Run) -> dict[str, Any]:
    """Return what distinguishes the plan's checkpoint from others; reads the start and the data."""
    target, model = _target_and_start(plan, plan.spec, run)
    return {**described(plan), "inputs": inputs_of(plan.spec, model, train=target["train"], val=target["val"])}


def _target_and_start(plan: FinetunePlan, spec: Spec, run: Run) -> tuple[Target, nn.Module]:
    """Return the target's data, read when they are used, and the model that the training starts from."""
    if plan.checkpoint is None:
        target = Target(spec, run)
        return target, initial_model(spec, class_names=target["train"].class_names, progress=run.progress)
    model = load_model(spec, plan.checkpoint)
    classes = Classes(class_names_of(plan.checkpoint), str(plan.checkpoint.path), _OTHER_HEAD)
    return Target(spec, run, classes), model


def _finetune(plan: FinetunePlan, run: Run, keeper: Keeper) -> FinetuneResult:
    began = time.perf_counter()
    make_repeatable(find_device(run.device))  # fails on a missing GPU before the data are read
    spec = keeper.as_before(plan.spec)
    watched = ["val", "test"] if plan.track_test else ["val"]
    target, model = _target_and_start(plan, spec, run)
    inputs = inputs_of(plan.spec, model, train=target["train"], val=target["val"])
    check_fits_data(model, target["train"], spec.loss, spec.data.where, run.progress)
    for split in watched:
        check_fits_data(model, target[split], spec.loss, spec.data.where)
    warn_of_left_out(model, run.progress)
    warn_of_neighbours(model, target["train"], run.progress)
    trial = plan_trial(spec.finetune, target["train"], target["val"], spec.seed)
    is_sharded, settings = must_shard(model, run), with_lr(spec.finetune, trial.lrs[0])
    compute = training_compute(spec, model, trial.examples, settings, run, is_sharded=is_sharded)
    judges = {split: target[split] for split in watched if split != "val" or not trial.is_folded}
    known = described(plan)
    keeper.precision, keeper.needs_all = compute.precision, is_sharded
    tracked = inputs_of(plan.spec, test=target["test"]) if plan.track_test else {}
    keeper.begin(command="finetune", **{**known, **tracked, **inputs}, track_test=plan.track_test)
    net = spread_training(model, compute, run, is_sharded=is_sharded)
    finetuning = Finetuning(
        spec, trial, model, judges, compute=compute, progress=run.progress, net=net, ranks=run.ranks
    )
    if keeper.state:
        finetuning.restore(keeper.state)
    with keeper.history(force=plan.destination.force, command="finetune", start=_start(plan)) as write:
        with keeper.steps():
            finetuning.run(write, keeper.checkpoint)
    account, tensors = finetuning.account, finetuning.tensors()
    if run.ranks.is_first:
        save_model(
            plan.destination,
            model,
            tensors,
            {
                **known,
                "inputs": inputs,
                "examples": len(trial.examples),
                "lr": account["lr"],
                "kept": account["kept"],
                "class_names": target["train"].class_names,
                **compute.recorded,
            },
            target["train"].class_names,
            start=plan.checkpoint,
        )
    return FinetuneResult(
        output=str(plan.destination.result),
        start=_start(plan),
        examples=len(trial.examples),
        history=[epoch_of(line) for line in finetuning.history],
        **account,
        method=plan.checkpoint.glue.get("method") if plan.checkpoint else None,
        seed=spec.seed,
        settings=known["settings"],
        **origin_of(spec),
        **compute.recorded,
        wall_s=time.perf_counter() - began,
    )


def _start(plan: FinetunePlan) -> str:
    return plan.checkpoint.name if plan.checkpoint else "scratch"
