"""Loss and figures of merit of checkpoints on one split of the target's data."""

import warnings
from pathlib import Path

from glue_cli.checkpoints.classes import class_names_of
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.run_state import fingerprint_of_checkpoint
from glue_cli.data.classes import Classes, doubt_about
from glue_cli.data.loader import Examples
from glue_cli.data.target import Target
from glue_cli.foundation.errors import DataError, UsageError
from glue_cli.foundation.json_text import as_json
from glue_cli.foundation.output_files import write_all, writing
from glue_cli.foundation.progress import Advanced, Finished, Noted, Started, silent
from glue_cli.foundation.run import Run
from glue_cli.foundation.threads import restored_threads
from glue_cli.models.weights import load_model
from glue_cli.plans.evaluate import EvaluatePlan
from glue_cli.plans.spec_folder import reading_notes
from glue_cli.results.evaluate import EvaluatedCheckpoint, EvaluateResult
from glue_cli.results.junit import junit_text
from glue_cli.results.provenance import origin_of
from glue_cli.results.record import as_object
from glue_cli.running.device import Compute, find_device, make_repeatable
from glue_cli.running.evaluation import Evaluation
from glue_cli.running.metrics import METRICS, MakeMetric, load_metrics
from glue_cli.search.protocol import Blends
from glue_cli.search.streamed.blends import StreamedBlends
from glue_cli.workflows.compute import blending_compute, evaluation_compute
from glue_cli.workflows.evaluation import add_all, add_only_blend
from glue_cli.workflows.fits import check_blends_fit_data, check_fits_data, warn_of_neighbours
from glue_cli.workflows.gates import ByExample, gates_of
from glue_cli.workflows.inputs import inputs_of
from glue_cli.workflows.mix.experts import adapter_alone
from glue_cli.workflows.quantised import run_if_quantised
from glue_cli.workflows.streaming import streamed_if_large


@restored_threads()
def evaluate(plan: EvaluatePlan, run: Run) -> EvaluateResult:
    """Evaluate every checkpoint, and compare its figures with the bars and with the baseline.

    Raises:
        UsageError: a metric is for labels, which the data do not have, or torchmetrics is not installed.
        CheckpointError: a checkpoint does not fit the spec's model.
        SpecError, DataError: the spec, the model and the data do not fit each other, or their classes do not; or
            there is a single example to compare by.
        ResourceError: the device is not available.
    """
    make_repeatable(find_device(run.device))  # fails on a missing GPU before the data are read
    spec = plan.spec
    for note in reading_notes(spec, [each for each in plan.checkpoints if each.path not in plan.adapters]):
        run.progress(Noted(note, warning=True))
    metrics = _load_metrics(plan, run)
    examples = Target(spec, run)[plan.split]
    _check_figures(plan, examples)
    checkpoints = [*([plan.baseline] if plan.baseline else []), *plan.checkpoints]
    if run.ranks.size > 1:
        files = {f"checkpoint {k}": fingerprint_of_checkpoint(one) for k, one in enumerate(checkpoints)}
        said = {"arch": spec.model.arch, "loss": spec.loss, "metrics": [*metrics]}
        run.ranks.check_alike({**said, **files, **inputs_of(spec, None, **{plan.split: examples})})
    views = [_view(plan, one, examples, run) for one in checkpoints]
    evaluated: list[tuple[EvaluatedCheckpoint, ByExample]] = []
    compute: Compute | None = None
    run.progress(Started("evaluate", len(checkpoints), "checkpoints"))
    for k, (checkpoint, view) in enumerate(zip(checkpoints, views, strict=True)):
        evaluation = Evaluation(spec.loss, metrics, keeps_examples=plan.baseline is not None)
        are_new = not k or view.dataset.labels is not views[k - 1].dataset.labels
        compute = _evaluate_one(evaluation, plan, checkpoint, view, run, compute, are_new=are_new)
        row = EvaluatedCheckpoint(
            checkpoint=checkpoint.name,
            split=plan.split,
            examples=len(examples),
            weights=checkpoint.weights,
            figures=_figures(evaluation, checkpoint.path, run),
            class_accuracy=_by_class(evaluation, view),
        )
        evaluated.append((row, evaluation.by_example()))
        run.progress(Advanced(len(evaluated)))
    run.progress(Finished())
    assert compute
    baseline = evaluated.pop(0) if plan.baseline else None
    gates = gates_of(plan, evaluated, baseline)
    result = EvaluateResult(
        results=[row for row, _ in evaluated],
        seed=spec.seed,
        **origin_of(spec),
        **compute.recorded,
        baseline=baseline[0] if baseline else None,
        gates=gates or None,
        missed=[f"{gate.checkpoint}: {gate.text}" for gate in gates if gate.missed],
    )
    if plan.output and run.ranks.is_first:
        _write(plan.output, f"{as_json(as_object(result))}\n".encode(), plan)
    if plan.junit and run.ranks.is_first:
        _write(plan.junit, junit_text(result), plan, "--junit")
    return result


def _evaluate_one(
    evaluation: Evaluation,
    plan: EvaluatePlan,
    checkpoint: Checkpoint,
    view: Examples,
    run: Run,
    compute: Compute | None,
    *,
    are_new: bool,
) -> Compute:
    """Add a checkpoint's outputs to an evaluation; its model or blocks leave the memory at the end.

    Args:
        compute: as the first checkpoint has chosen it; None for that one, which chooses.
        are_new: whether the labels are not those of the checkpoint before, and have to fit the model too.
    """
    spec = plan.spec
    progress = run.progress if compute is None else silent  # what is told of the first is true of all
    if blends := _blends_of(plan, checkpoint, run):
        if are_new:
            check_blends_fit_data(blends, view, spec.loss, spec.data.where, progress)
        if compute is None:
            compute, _ = blending_compute(spec, blends, view, run)
        add_only_blend(evaluation, blends.with_precision(compute.precision), view.on(compute), run.ranks)
        if isinstance(blends, StreamedBlends):
            blends.close()  # its threads refer to it
        return compute
    model = load_model(spec, checkpoint)
    if are_new:
        check_fits_data(model, view, spec.loss, spec.data.where, progress)
    if compute is None:  # timed on data that fit
        warn_of_neighbours(model, view, run.progress)
        compute = evaluation_compute(spec, model, view, run)
    add_all(evaluation, compute.to_device(model), view.on(compute), compute, run.ranks, seed=spec.seed)
    return compute


def _blends_of(plan: EvaluatePlan, checkpoint: Checkpoint, run: Run) -> Blends | None:
    """Return what is evaluated as the only blend of a single expert; None for a plain model that fits into memory."""
    if adapters := plan.adapters.get(checkpoint.path):
        return adapter_alone(adapters).blends(plan.spec, run, seed=plan.spec.seed, n_blends=1)
    return run_if_quantised(plan.spec, checkpoint, run) or streamed_if_large(plan.spec, checkpoint, run)


def _figures(evaluation: Evaluation, path: Path, run: Run) -> dict[str, float]:
    """Return the figures of an evaluation, and report the warnings of torchmetrics as notes."""
    with warnings.catch_warnings(record=True) as caught:  # such as for a class without examples
        warnings.simplefilter("always")
        figures = evaluation.figures()
    for warning in caught:
        run.progress(Noted(f"{path}: {warning.message}", warning=True))
    return figures


def _write(path: Path, content: bytes, plan: EvaluatePlan, option: str = "--output") -> None:
    with writing(path, replace=plan.force, option=option) as descriptor:
        write_all(descriptor, content, 0)


def _load_metrics(plan: EvaluatePlan, run: Run) -> dict[str, MakeMetric]:
    """Return the metrics that were asked for, and those of a regression if torchmetrics is installed."""
    loss = plan.spec.loss
    try:
        return load_metrics(loss, plan.metrics if loss == "cross_entropy" else [*METRICS[loss]])
    except UsageError as error:
        if plan.metrics:
            raise
        run.progress(Noted(f"{error.message}: {error.hint}"))
        return {}


def _check_figures(plan: EvaluatePlan, examples: Examples) -> None:
    if plan.baseline and len(examples) == 1:
        raise DataError(
            f"--compare: the {plan.split} split of '{plan.spec.data.where}' has a single example, which tells of no "
            "difference whether it is chance",
            hint="evaluate on more examples, or leave --compare out",
        )
    if plan.spec.loss != "cross_entropy":
        return
    asked = [*plan.metrics, *plan.bars]
    if asked and examples.dataset.labels is None:
        raise UsageError(f"texts without labels have no {asked[0]}", hint="their figures are the loss and perplexity")
    if "perplexity" in plan.ceilings and examples.dataset.labels is not None:
        raise UsageError("data with labels have no perplexity", hint="set a bar for the loss: --fail-over loss=0.5")


def _view(plan: EvaluatePlan, checkpoint: Checkpoint, examples: Examples, run: Run) -> Examples:
    """Return the examples with labels that are the checkpoint's class numbers; warn where these are a guess."""
    classes = _classes_of(plan, checkpoint)
    if doubt := doubt_about(examples.dataset, classes, of_library=plan.spec.model_folder is not None):
        run.progress(Noted(doubt, warning=True))
    return examples.renumbered(classes, f"'{plan.spec.data.where}'")


def _classes_of(plan: EvaluatePlan, checkpoint: Checkpoint) -> Classes:
    """Return the classes that a checkpoint's outputs stand for; those of an adapter may be its base's."""
    hint = "evaluate it on data with its own classes, or give the classes one name in the data and in config.json"
    names = class_names_of(checkpoint)
    if not names and (adapters := plan.adapters.get(checkpoint.path)) and adapters.adapted:
        names = class_names_of(adapters.adapted.base)
    return Classes(names, str(checkpoint.path), hint)


def _by_class(evaluation: Evaluation, examples: Examples) -> dict[str, float | None] | None:
    """Return each class's accuracy, by name if all names differ, else by number; None without labels.

    Args:
        examples: with labels that are the model's class numbers.
    """
    labels, names = examples.dataset.labels, examples.class_names or []
    if labels is None:
        return None
    if not names or len(set(names)) < len(names):
        names = [str(i) for i in range(len(names) or int(labels.max()) + 1)]
    return dict(zip(names, evaluation.class_accuracies(), strict=False))
