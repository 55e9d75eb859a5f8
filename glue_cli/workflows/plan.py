"""What a command is asked to do, checked as far as that is cheap: before torch is imported and any data is read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from glue_cli.core.checkpoint import Checkpoint, read_checkpoint
from glue_cli.core.destination import Destination, plan_model_destination
from glue_cli.core.errors import SpecError, UsageError
from glue_cli.core.metrics import BARS, METRICS
from glue_cli.core.output import check_output, check_output_folder
from glue_cli.core.progress import Progress, silent
from glue_cli.core.spec import Spec
from glue_cli.data import check_data


@dataclass(frozen=True)
class Run:
    """What every command shares.

    Attributes:
        device: auto, cpu, cuda or cuda:I.
        cache: a folder for what is slow to find out again; None keeps nothing.
        history: a file that gets a JSON line a step or epoch.
    """

    device: str = "auto"
    cache: Path | None = None
    history: Path | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class Outputs:
    """Where a command writes, and what it may not write over.

    Attributes:
        result: the checkpoint or the report; None where there is none.
        history: see `Run`.
        spec_file: where the spec is, or would be.
        force: whether files that exist may be replaced; inputs never are.
    """

    result: Path | None
    history: Path | None = None
    spec_file: Path = Path("glue.yaml")
    force: bool = False

    def check(
        self, checkpoints: Sequence[Checkpoint], spec: Spec | None, destination: Destination | None = None
    ) -> None:
        """Check the outputs against each other and against all that the command reads.

        Args:
            destination: the files that the result becomes, where it is not one file.

        Raises:
            UsageError: an output is an input or another output, is a folder, or exists without `force`.
            ResourceError: it cannot be written.
        """
        inputs = [self.spec_file, *(file for c in checkpoints for file in (c.path, *c.files))]
        if spec:
            inputs += _data_files(spec)
            inputs += [folder, folder / "config.json"] if (folder := _model_folder(spec)) else []
        results = destination.paths if destination else [self.result]
        if destination and destination.is_folder:
            check_output_folder(destination.result, inputs, force=self.force)
        outputs = [path for path in (*results, self.history) if path]
        if len({os.path.realpath(path) for path in outputs}) < len(outputs):
            raise UsageError(f"'{self.result}' is both the output and the history", hint="name another --history")
        for path in outputs:
            option = "--history" if path == self.history else "--output"
            check_output(path, inputs, force=self.force, option=option)
        for stale in destination.stale_files() if destination else []:  # which go
            check_output(stale, inputs, force=self.force)


def _data_files(spec: Spec) -> list[Path]:
    """Return the files of the spec's data sets that an output could be taken for: safetensors and JSON lines."""
    members = spec.experts.members if spec.experts else []
    return [
        spec.path(data.root) / f"{name}.{data.format}"  # which is the ending too
        for data in (spec.data, *(member.data for member in members))
        if data.format in ("safetensors", "jsonl")
        for name in ("train", "val", "test", *data.splits.values())
    ]


@dataclass(frozen=True)
class TrainExpertPlan:
    spec: Spec
    expert: int
    name: str
    destination: Destination


@dataclass(frozen=True)
class FinetunePlan:
    """What `glue finetune` is asked to do.

    Attributes:
        checkpoint: None to train from scratch.
        track_test: record the test figures of every epoch too; they select nothing.
    """

    spec: Spec
    checkpoint: Checkpoint | None
    track_test: bool
    destination: Destination


@dataclass(frozen=True)
class EvaluatePlan:
    """What `glue evaluate` is asked to do.

    Attributes:
        metrics: figures beyond the usual ones, names of `core.metrics.METRICS`.
        bars: a figure's least value, by its name.
        output: a file for the result as JSON, if any.
    """

    spec: Spec
    checkpoints: tuple[Checkpoint, ...]
    split: Literal["train", "val", "test"]
    metrics: tuple[str, ...]
    bars: dict[str, float]
    output: Path | None


def plan_train_expert(spec: Spec, expert: int, outputs: Outputs) -> TrainExpertPlan:
    """Check that the spec has the expert, what it starts from, and where it goes: by default, to its own name.

    Raises:
        UsageError: there is no such expert, or the output cannot be.
        SpecError: the spec has no experts, or its data section does not fit the format.
        DataError: there is no folder of data.
        CheckpointError: the checkpoint to start from is damaged.
    """
    if spec.experts is None:
        raise SpecError("the spec has no section 'experts'", hint="add experts: {count: 5, size: 2000}, or members")
    n_experts = spec.experts.n_experts
    if not 0 <= expert < n_experts:
        known = "one expert, number 0" if n_experts == 1 else f"{n_experts} experts, 0 to {n_experts - 1}"
        raise UsageError(f"--expert {expert}: not in the spec", hint=f"the spec has {known}")
    name = spec.experts.members[expert].name if spec.experts.members else f"expert-{expert:03d}"
    output = outputs.result or Path("experts") / f"expert-{expert:03d}.safetensors"
    destination = plan_model_destination(output, _model_folder(spec))
    replace(outputs, result=output).check(_initial_checkpoint(spec), spec, destination)
    data = spec.experts.members[expert].data if spec.experts.members else spec.data
    check_data(data, spec.path(data.root))
    return TrainExpertPlan(spec.of_expert(expert), expert, name, destination)


def _initial_checkpoint(spec: Spec) -> list[Checkpoint]:
    """Return the pretrained checkpoint that `experts.init` names, if it names one."""
    init = spec.experts.init if spec.experts else "shared"
    return [] if init in ("shared", "independent") else [read_checkpoint(spec.path(init))]


def _model_folder(spec: Spec) -> Path | None:
    """Return the folder of a model of transformers, which the folders of its finetuned copies resemble."""
    folder = spec.model.args.get("path")
    if not spec.model.arch.startswith("transformers:") or not isinstance(folder, str):
        return None
    return spec.path(folder) if spec.path(folder).is_dir() else None


def plan_finetune(spec: Spec, checkpoint: Path | None, outputs: Outputs, *, track_test: bool) -> FinetunePlan:
    """Check the header of the checkpoint to start from, and the output.

    Raises:
        UsageError: the checkpoint is not there, or the output cannot be.
        CheckpointError: the checkpoint is damaged.
        SpecError, DataError: the data section does not fit the format, or there is no folder of data.
    """
    assert outputs.result
    found = read_checkpoint(checkpoint) if checkpoint else None
    destination = plan_model_destination(outputs.result, _model_folder(spec))
    outputs.check([found] if found else _initial_checkpoint(spec), spec, destination)
    check_data(spec.data, spec.path(spec.data.root))
    return FinetunePlan(spec, found, track_test, destination)


def plan_evaluate(
    spec: Spec,
    checkpoints: Sequence[Path],
    split: Literal["train", "val", "test"],
    bars: dict[str, float],
    outputs: Outputs,
    *,
    metrics: Sequence[str] = (),
) -> EvaluatePlan:
    """Check the checkpoints' headers, the metrics, the bars and the output; a metric with a bar is one to evaluate.

    Raises:
        UsageError: a checkpoint is not there, or a metric or a bar is for no figure of this loss.
        CheckpointError: a checkpoint is damaged.
        SpecError, DataError: the data section does not fit the format, or there is no folder of data.
    """
    known, with_bars = METRICS[spec.loss], BARS[spec.loss]
    for name in metrics:
        if name not in known:
            raise UsageError(f"--metric {name}: not known", hint=f"with the loss {spec.loss}: {', '.join(known)}")
    for name in bars:
        if name not in with_bars:
            raise UsageError(
                f"--fail-under {name}: not a figure with a bar",
                hint=f"with the loss {spec.loss}, more is better of {', '.join(with_bars)}",
            )
    metrics = tuple(dict.fromkeys([*metrics, *(name for name in bars if name in known)]))
    found = tuple(read_checkpoint(path) for path in checkpoints)
    outputs.check(found, spec)
    check_data(spec.data, spec.path(spec.data.root))
    return EvaluatePlan(spec, found, split, metrics, bars, outputs.result)
