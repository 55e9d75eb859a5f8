"""Train one expert on its own data."""

import time
from typing import Any

from glue_cli import __version__
from glue_cli.data.expert_data import read_expert
from glue_cli.foundation.run import Run
from glue_cli.foundation.threads import restored_threads
from glue_cli.models.weights import initial_model
from glue_cli.plans.train_expert import TrainExpertPlan
from glue_cli.results.provenance import origin_of
from glue_cli.results.train_expert import TrainExpertResult
from glue_cli.running.device import find_device, make_repeatable
from glue_cli.workflows.compute import training_compute
from glue_cli.workflows.fits import check_fits_data
from glue_cli.workflows.inputs import inputs_of
from glue_cli.workflows.keeper import Keeper
from glue_cli.workflows.resuming import keeping
from glue_cli.workflows.save import save_model, warn_of_left_out
from glue_cli.workflows.spreading import must_shard, spread_training
from glue_cli.workflows.training import Training


@restored_threads()
def train_expert(plan: TrainExpertPlan, run: Run) -> TrainExpertResult:
    """Train expert `plan.expert` of the spec and write its checkpoint.

    Raises:
        SpecError, DataError: the spec, the model and the data do not fit each other.
        NumericalError: the loss diverges.
        ResourceError: the output cannot be written, or the device is not available.
    """
    with keeping(plan.destination.result, run) as keeper:
        return _train_expert(plan, run, keeper)


def described(plan: TrainExpertPlan) -> dict[str, Any]:
    """Return the part of the checkpoint's metadata that is known before the work begins."""
    spec = plan.spec
    assert spec.experts is not None
    settings = {
        "loss": spec.loss,
        "train": spec.train.model_dump(),
        "experts": spec.experts.model_dump(include={"count", "size", "dirichlet", "init"}),
    }
    return {
        "glue": __version__,
        "kind": "expert",
        "model": spec.model.model_dump(),
        "name": plan.name,
        "seed": spec.seed,
        "settings": settings,
    }


def described_in_full(plan: TrainExpertPlan, run: Run) -> dict[str, Any]:
    """Return what distinguishes the plan's expert from others; reads its data."""
    examples = read_expert(plan.spec, plan.expert, run)
    start = initial_model(plan.spec, plan.expert, class_names=examples.class_names)
    return {**described(plan), "inputs": inputs_of(plan.spec, start, train=examples)}


def _train_expert(plan: TrainExpertPlan, run: Run, keeper: Keeper) -> TrainExpertResult:
    began = time.perf_counter()
    make_repeatable(find_device(run.device))  # fails on a missing GPU before the data are read
    spec = keeper.as_before(plan.spec)
    examples = read_expert(spec, plan.expert, run)
    model = initial_model(spec, plan.expert, class_names=examples.class_names, progress=run.progress)
    inputs = inputs_of(plan.spec, model, train=examples)
    check_fits_data(model, examples, spec.loss, spec.data.where, run.progress)
    warn_of_left_out(model, run.progress)
    is_sharded = must_shard(model, run)
    compute = training_compute(spec, model, examples, spec.train, run, is_sharded=is_sharded)
    known = described(plan)
    keeper.precision, keeper.needs_all = compute.precision, is_sharded
    keeper.begin(command="train-expert", **known, **inputs)
    net = spread_training(model, compute, run, is_sharded=is_sharded)
    training = Training(
        model,
        examples.on(compute),
        spec.train,
        loss=spec.loss,
        compute=compute,
        seed=spec.seed,
        task=f"train {plan.name}",
        progress=run.progress,
        net=net,
        ranks=run.ranks,
    )
    if keeper.state:
        training.restore(keeper.state)
    with keeper.history(force=plan.destination.force, command="train-expert", expert=plan.expert) as write:
        with keeper.steps():
            training.run(write, keeper.checkpoint)
    tensors = training.best_tensors()
    if run.ranks.is_first:
        save_model(
            plan.destination,
            model,
            tensors,
            {
                **known,
                "inputs": inputs,
                "examples": len(examples),
                "class_names": examples.class_names,
                **compute.recorded,
            },
            examples.class_names,
        )
    labels = examples.dataset.labels
    return TrainExpertResult(
        output=str(plan.destination.result),
        expert=plan.expert,
        name=plan.name,
        examples=len(examples),
        epochs=spec.train.epochs,
        loss=training.history[-1]["train_loss"],
        seed=spec.seed,
        settings=known["settings"],
        **origin_of(spec),
        **compute.recorded,
        wall_s=time.perf_counter() - began,
        class_counts=None if labels is None else labels.bincount(minlength=len(examples.class_names or ())).tolist(),
    )
