"""Loss and figures of merit of checkpoints on one split of the target's data."""

from typing import Any

from glue_cli.core.device import find_device
from glue_cli.core.output import writing
from glue_cli.core.progress import Advanced, Finished, Started
from glue_cli.core.tensors import write_all
from glue_cli.workflows.as_json import as_json
from glue_cli.workflows.compute import forward_compute
from glue_cli.workflows.examples import read_target
from glue_cli.workflows.plan import EvaluatePlan, Run
from glue_cli.workflows.training import evaluate_model
from glue_cli.workflows.weights import check_fits_data, load_model


def evaluate(plan: EvaluatePlan, run: Run) -> dict[str, Any]:
    """Evaluate every checkpoint; return what `--json` prints, with `missed`: a line for each bar that was missed.

    Raises:
        CheckpointError: a checkpoint does not fit the spec's model.
        SpecError, DataError: the spec, the model and the data do not fit each other.
        ResourceError: the device is not there.
    """
    find_device(run.device)  # a missing GPU shows before the data are read
    spec = plan.spec
    examples = read_target(spec, [plan.split], run)[plan.split]
    results: list[dict[str, Any]] = []
    missed: list[str] = []
    run.progress(Started("evaluate", len(plan.checkpoints), "checkpoints"))
    for checkpoint in plan.checkpoints:
        model = load_model(spec, checkpoint)
        if not results:
            check_fits_data(model, examples, spec.loss, spec.data.root)
            compute = forward_compute(spec, model, examples, run)
            batches = examples.on(compute)
        figures = evaluate_model(compute.place(model), batches, loss=spec.loss, compute=compute)
        results.append({"checkpoint": str(checkpoint.path), "split": plan.split, "examples": len(examples), **figures})
        for name, bar in plan.bars.items():
            if not figures[name] >= bar:
                missed.append(f"{checkpoint.path}: {name} {figures[name]:.4f} is under {bar:g}")
        run.progress(Advanced(len(results)))
    run.progress(Finished())
    result = {"schema": "glue.evaluate/1", "results": results, "precision": compute.precision, "missed": missed}
    if plan.output:
        with writing(plan.output) as descriptor:
            write_all(descriptor, f"{as_json(result)}\n".encode(), 0)
    return result
