"""What `glue train-expert` is asked to do, checked before torch is imported and any data is read."""

from dataclasses import dataclass, replace
from pathlib import Path

from glue_cli.blend.misfit import refuse
from glue_cli.blend.quantised import quantised_model_misfits
from glue_cli.checkpoints.destination import Destination, plan_model_destination
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data import check_data
from glue_cli.data.model_normalisation import as_models_say
from glue_cli.foundation.errors import SpecError, UsageError
from glue_cli.models.tasks import check_task
from glue_cli.plans.hub import fetched
from glue_cli.plans.outputs import Outputs, model_folder
from glue_cli.spec.schema import Spec


@dataclass(frozen=True)
class TrainExpertPlan:
    spec: Spec
    expert: int
    name: str
    destination: Destination


def plan_train_expert(spec: Spec, expert: int, outputs: Outputs) -> TrainExpertPlan:
    """Check that the spec has the expert, its initial checkpoint, and the output (by default, named by its number).

    Raises:
        UsageError: there is no such expert, or the output cannot be written there.
        SpecError: the spec has no experts, its data section does not fit the format, or no loss its model.
        DataError: there is no folder of data.
        CheckpointError: the checkpoint to start from is damaged.
    """
    check_task(spec.model.arch)
    spec = fetched(spec)
    if spec.experts is None:
        raise SpecError("the spec has no section 'experts'", hint="add experts: {count: 5, size: 2000}, or members")
    n_experts = spec.experts.n_experts
    if not 0 <= expert < n_experts:
        known = "one expert, number 0" if n_experts == 1 else f"{n_experts} experts, 0 to {n_experts - 1}"
        raise UsageError(f"--expert {expert}: not in the spec", hint=f"the spec has {known}")
    name = spec.experts.members[expert].name if spec.experts.members else f"expert-{expert:03d}"
    output = outputs.result or Path("experts") / f"expert-{expert:03d}.safetensors"
    destination = plan_model_destination(output, model_folder(spec))
    start = initial_checkpoint(spec)
    refuse(quantised_model_misfits(start[0]) if start else [])
    replace(outputs, result=output).check(start, spec, destination)
    data = spec.experts.members[expert].data if spec.experts.members else spec.data
    check_data(data, spec.path(data.root))
    own = as_models_say(spec.of_expert(expert), start)
    return TrainExpertPlan(own, expert, name, replace(destination, force=outputs.force))


def initial_checkpoint(spec: Spec) -> list[Checkpoint]:
    """Return the pretrained checkpoint that `experts.init` names, if any."""
    return [read_checkpoint(spec.start_of_experts)] if spec.start_of_experts else []
