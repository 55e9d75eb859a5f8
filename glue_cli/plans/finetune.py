"""What `glue finetune` is asked to do, checked before torch is imported and any data is read."""

from dataclasses import dataclass, replace
from pathlib import Path

from glue_cli.blend.misfit import refuse
from glue_cli.blend.quantised import quantised_model_misfits
from glue_cli.checkpoints.destination import Destination, plan_model_destination
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.hub import fetch
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.weight_sets import check_any_has
from glue_cli.data import check_data
from glue_cli.data.model_normalisation import as_models_say
from glue_cli.models.tasks import check_task
from glue_cli.plans.hub import fetched
from glue_cli.plans.outputs import Outputs, model_folder
from glue_cli.plans.spec_folder import check_folders
from glue_cli.plans.train_expert import initial_checkpoint
from glue_cli.spec.schema import Spec


@dataclass(frozen=True)
class FinetunePlan:
    """What `glue finetune` is asked to do.

    Attributes:
        checkpoint: None to train from scratch.
        track_test: record the test figures of every epoch too; they are not used to select anything.
    """

    spec: Spec
    checkpoint: Checkpoint | None
    track_test: bool
    destination: Destination


def plan_finetune(
    spec: Spec, checkpoint: Path | None, outputs: Outputs, *, track_test: bool, weights: str | None = None
) -> FinetunePlan:
    """Check the header of the checkpoint to start from, and the output.

    Args:
        weights: which set of weights to read from a file that has several; None chooses by convention.
    Raises:
        UsageError: the checkpoint does not exist, or the output cannot be written there.
        CheckpointError: the checkpoint is damaged, or quantised.
        SpecError, DataError: the data section does not fit the format, or no loss the model; or there is no folder of
            data.
    """
    assert outputs.result
    check_task(spec.model.arch)
    spec = fetched(spec)
    start_checkpoint = read_checkpoint(fetch(checkpoint), weights) if checkpoint else None
    check_any_has([start_checkpoint] if start_checkpoint else [], weights)
    destination = plan_model_destination(outputs.result, model_folder(spec))
    start = [start_checkpoint] if start_checkpoint else initial_checkpoint(spec)
    refuse(quantised_model_misfits(start[0]) if start else [])
    check_folders(spec, [start_checkpoint] if start_checkpoint else [])
    outputs.check(start, spec, destination)
    check_data(spec.data, spec.path(spec.data.root))
    return FinetunePlan(
        as_models_say(spec, start), start_checkpoint, track_test, replace(destination, force=outputs.force)
    )
