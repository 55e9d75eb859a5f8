"""What a command is asked to do, checked as far as that is cheap: before torch is imported and any data is read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from glue_cli.core.checkpoint import Checkpoint, read_checkpoint
from glue_cli.core.compatibility import check_compatible, check_copied
from glue_cli.core.destination import Destination, plan_destination
from glue_cli.core.errors import SpecError, UsageError
from glue_cli.core.output import check_output, check_output_folder
from glue_cli.core.progress import Progress, silent
from glue_cli.core.simplex import check_alpha
from glue_cli.core.spec import Spec
from glue_cli.methods import METHODS

FILE_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


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
        results = destination.paths if destination else [self.result]
        if destination and destination.is_folder:
            check_output_folder(destination.result, inputs, force=self.force)
        outputs = [path for path in (*results, self.history) if path]
        if len({os.path.realpath(path) for path in outputs}) < len(outputs):
            raise UsageError(f"'{self.result}' is both the output and the history", hint="name another --history")
        for path in outputs:
            check_output(path, inputs, force=self.force)


def _data_files(spec: Spec) -> list[Path]:
    """Return the files of the spec's data sets that an output could be taken for: those that are safetensors."""
    members = spec.experts.members if spec.experts else []
    return [
        spec.path(data.root) / f"{name}.safetensors"
        for data in (spec.data, *(member.data for member in members))
        for name in ("train", "val", "test", *data.splits.values())
    ]


@dataclass(frozen=True)
class TrainExpertPlan:
    spec: Spec
    expert: int
    name: str
    output: Path


@dataclass(frozen=True)
class MixPlan:
    """Attributes:
    method: a name of `METHODS`, or "alpha" for given coefficients.
    alpha: given coefficients [K]; sizes: numbers of training examples [K]; None where the method needs none.
    memory_bytes: what the blend's buffers may take; hashing: whether the experts' sha256 are taken.
    spec: None where the method needs none.
    """

    experts: tuple[Checkpoint, ...]
    method: str
    alpha: tuple[float, ...] | None
    sizes: tuple[int, ...] | None
    memory_bytes: int
    hashing: bool
    spec: Spec | None
    seed: int
    destination: Destination


@dataclass(frozen=True)
class FinetunePlan:
    """Attributes:
    checkpoint: None to train from scratch.
    track_test: record the test figures of every epoch too; they select nothing.
    """

    spec: Spec
    checkpoint: Checkpoint | None
    track_test: bool
    output: Path


@dataclass(frozen=True)
class EvaluatePlan:
    """Attributes:
    bars: a figure's least value, by its name.
    output: a file for the result as JSON, if any.
    """

    spec: Spec
    checkpoints: tuple[Checkpoint, ...]
    split: Literal["train", "val", "test"]
    bars: dict[str, float]
    output: Path | None


def plan_train_expert(spec: Spec, expert: int, outputs: Outputs) -> TrainExpertPlan:
    """Check that the spec has the expert, what it starts from, and where it goes: by default, to its own name.

    Raises:
        UsageError: there is no such expert, or the output cannot be.
        SpecError: the spec has no experts.
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
    replace(outputs, result=output).check(_initial_checkpoint(spec), spec)
    return TrainExpertPlan(spec, expert, name, output)


def _initial_checkpoint(spec: Spec) -> list[Checkpoint]:
    """Return the pretrained checkpoint that `experts.init` names, if it names one."""
    init = spec.experts.init if spec.experts else "shared"
    return [] if init in ("shared", "independent") else [read_checkpoint(spec.path(init))]


def plan_mix(
    paths: Sequence[Path],
    outputs: Outputs,
    *,
    method: str | None,
    alpha: Sequence[float] | None,
    sizes: Sequence[int] | None,
    dtype: str | None,
    max_shard_bytes: int | None,
    memory_bytes: int,
    hashing: bool,
    spec: Spec | None,
    seed: int,
) -> MixPlan:
    """Check coefficients, experts and output against each other, from the headers alone.

    Raises:
        UsageError: the command line does not make sense.
        CheckpointError: an expert is damaged, or they do not fit each other.
    """
    if not paths:
        raise UsageError("no experts given", hint="name their files: glue mix ... experts/*.safetensors")
    if alpha is not None:
        check_alpha(alpha, len(paths))
    if sizes is not None and len(sizes) != len(paths):
        raise UsageError(
            f"--sizes has {len(sizes)} numbers, but there are {len(paths)} experts",
            hint="give one number an expert, in the experts' order",
        )
    if sizes is not None and (min(sizes) < 0 or not any(sizes)):
        raise UsageError(
            f"--sizes {','.join(map(str, sizes))}: these are no sizes",
            hint="give numbers of examples, 0 or more and not all 0",
        )
    experts = tuple(read_checkpoint(path) for path in paths)
    assert outputs.result
    file_dtype = FILE_DTYPES[dtype] if dtype else None
    destination = plan_destination(outputs.result, experts, dtype=file_dtype, max_shard_bytes=max_shard_bytes)
    outputs.check(experts, spec, destination)
    check_compatible(experts, dtype_given=dtype is not None)
    check_copied(experts)
    if method is not None and METHODS[method].needs == "sizes":
        sizes = sizes if sizes is not None else _recorded_sizes(experts)
    return MixPlan(
        experts,
        method or "alpha",
        tuple(alpha) if alpha is not None else None,
        tuple(sizes) if sizes is not None else None,
        memory_bytes,
        hashing,
        spec,
        seed,
        destination,
    )


def _recorded_sizes(experts: Sequence[Checkpoint]) -> list[int]:
    sizes, lacking = [], []
    for expert in experts:
        size = expert.glue.get("examples")
        if type(size) is int and size >= 0:
            sizes.append(size)
        else:
            lacking.append(str(expert.path))
    if lacking:
        raise UsageError(
            "these experts do not say how many examples they were trained on",
            items=lacking,
            hint="give all the numbers, in the experts' order: --sizes 2000,500",
        )
    return sizes


def plan_finetune(spec: Spec, checkpoint: Path | None, outputs: Outputs, *, track_test: bool) -> FinetunePlan:
    """Check the header of the checkpoint to start from, and the output.

    Raises:
        UsageError: the checkpoint is not there, or the output cannot be.
        CheckpointError: the checkpoint is damaged.
    """
    found = read_checkpoint(checkpoint) if checkpoint else None
    outputs.check([found] if found else _initial_checkpoint(spec), spec)
    assert outputs.result
    return FinetunePlan(spec, found, track_test, outputs.result)


def plan_evaluate(
    spec: Spec,
    checkpoints: Sequence[Path],
    split: Literal["train", "val", "test"],
    bars: dict[str, float],
    outputs: Outputs,
) -> EvaluatePlan:
    """Check the checkpoints' headers, the bars and the output.

    Raises:
        UsageError: a checkpoint is not there, or a bar is for no figure of this loss.
        CheckpointError: a checkpoint is damaged.
    """
    figure = "accuracy" if spec.loss == "cross_entropy" else "r2"
    for name in bars:
        if name != figure:
            raise UsageError(
                f"--fail-under {name}: not a figure with a bar",
                hint=f"with the loss {spec.loss}: --fail-under {figure}=...",
            )
    found = tuple(read_checkpoint(path) for path in checkpoints)
    outputs.check(found, spec)
    return EvaluatePlan(spec, found, split, bars, outputs.result)
