"""Choose alpha: give a method the sizes, accuracies or objective that it works from."""

from dataclasses import asdict, dataclass, field
from typing import Any

from glue_cli.core.bank import load_bank
from glue_cli.core.errors import SpecError
from glue_cli.core.objective import BlendObjective, Cost
from glue_cli.core.progress import Advanced, Finished, Started
from glue_cli.core.spec import Spec
from glue_cli.methods import METHODS
from glue_cli.methods.descent import Learned, StepRecord
from glue_cli.models import build_model
from glue_cli.workflows.compute import forward_compute
from glue_cli.workflows.examples import read_target
from glue_cli.workflows.history import Write
from glue_cli.workflows.plan import MixPlan, Run
from glue_cli.workflows.training import evaluate_model
from glue_cli.workflows.weights import check_fits_data, check_fits_model, load_model


@dataclass(frozen=True)
class Choice:
    """A chosen alpha [K] and its account.

    Attributes:
        settings: what it takes to choose it again.
        loss: validation losses of a search.
        details: what else the method has to say.
    """

    alpha: list[float]
    settings: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    loss: dict[str, float | None] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def choose_alpha(plan: MixPlan, run: Run, write: Write) -> Choice:
    """Give the plan's method what it needs, and return its alpha with the account.

    Args:
        write: gets a line a step of a search, or an expert that is evaluated.
    """
    if plan.alpha is not None:
        return Choice(list(plan.alpha))
    method = METHODS[plan.method]
    if method.needs == "count":
        return Choice(method.load()(len(plan.experts)))
    if method.needs == "sizes":
        return Choice(method.load()(plan.sizes))
    assert plan.spec is not None
    if method.needs == "accuracies":
        return _choose_by_accuracy(plan, plan.spec, run, write)
    return _search(plan, plan.spec, run, write)


def _choose_by_accuracy(plan: MixPlan, spec: Spec, run: Run, write: Write) -> Choice:
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
    return Choice(
        METHODS[plan.method].load()(accuracies),
        settings={"precision": compute.precision},
        cost=cost,
        details={"val_accuracies": accuracies, "precision": compute.precision},
    )


def _search(plan: MixPlan, spec: Spec, run: Run, write: Write) -> Choice:
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
    return Choice(
        learned.alpha,
        settings={"mix": settings.model_dump(), "loss": spec.loss, "precision": compute.precision},
        cost=objective.cost,
        loss={"val": learned.val_loss, "val_uniform": learned.val_loss_start},
        details={"steps": learned.n_steps, "stopped": learned.stopped, "precision": compute.precision},
    )
