"""What a command is asked to do, checked as far as that is cheap: before torch is imported and any data is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glue_cli.core.checkpoint import Checkpoint, read_checkpoint
from glue_cli.core.compatibility import check_compatible
from glue_cli.core.errors import SpecError, UsageError
from glue_cli.core.output import check_output
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
    dtype: the output's floating-point dtype as a file names it; None keeps each tensor's own.
    spec: None where the method needs none.
    """

    experts: tuple[Checkpoint, ...]
    method: str
    alpha: tuple[float, ...] | None
    sizes: tuple[int, ...] | None
    dtype: str | None
    spec: Spec | None
    seed: int
    output: Path


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


def plan_train_expert(spec: Spec, expert: int, output: Path | None, *, force: bool) -> TrainExpertPlan:
    """Check that the spec has the expert, and where it goes.

    Raises:
        UsageError: there is no such expert, or the output cannot be.
        SpecError: the spec has no experts.
    """
    if spec.experts is None:
        raise SpecError("the spec has no section 'experts'", hint="add experts: {count: 5, size: 2000}, or members")
    n_experts = spec.experts.n_experts
    if not 0 <= expert < n_experts:
        raise UsageError(f"--expert {expert}: the spec has {n_experts} experts, 0 to {n_experts - 1}")
    name = spec.experts.members[expert].name if spec.experts.members else f"expert-{expert:03d}"
    output = output or Path("experts") / f"expert-{expert:03d}.safetensors"
    inputs = [] if spec.experts.init in ("shared", "independent") else [spec.path(spec.experts.init)]
    check_output(output, inputs, force=force)
    return TrainExpertPlan(spec, expert, name, output)


def plan_mix(
    paths: Sequence[Path],
    output: Path,
    *,
    method: str | None,
    alpha: Sequence[float] | None,
    sizes: Sequence[int] | None,
    dtype: str | None,
    spec: Spec | None,
    seed: int,
    force: bool,
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
        raise UsageError(f"--sizes has {len(sizes)} numbers, but there are {len(paths)} experts")
    if sizes is not None and (min(sizes) < 0 or not any(sizes)):
        raise UsageError("--sizes: wanted numbers of examples, 0 or more and not all 0")
    experts = tuple(read_checkpoint(path) for path in paths)
    check_output(output, [file for expert in experts for file in expert.files], force=force)
    check_compatible(experts, dtype_given=dtype is not None)
    if method is not None and METHODS[method].needs == "sizes":
        sizes = sizes if sizes is not None else _recorded_sizes(experts)
    return MixPlan(
        experts,
        method or "alpha",
        tuple(alpha) if alpha is not None else None,
        tuple(sizes) if sizes is not None else None,
        FILE_DTYPES[dtype] if dtype else None,
        spec,
        seed,
        output,
    )


def _recorded_sizes(experts: Sequence[Checkpoint]) -> list[int]:
    sizes = [expert.glue.get("examples") for expert in experts]
    known = [size for size in sizes if isinstance(size, int) and size >= 0]
    lacking = [str(expert.path) for expert, size in zip(experts, sizes, strict=True) if size not in known]
    if lacking:
        raise UsageError(
            "these experts do not say how many examples they were trained on",
            items=lacking,
            hint="give all the numbers, in the experts' order: --sizes 2000,500",
        )
    return known


def plan_finetune(spec: Spec, checkpoint: Path | None, output: Path, *, track_test: bool, force: bool) -> FinetunePlan:
    """Check the checkpoint's header and the output.

    Raises:
        UsageError: the checkpoint is not there, or the output cannot be.
        CheckpointError: the checkpoint is damaged.
    """
    found = read_checkpoint(checkpoint) if checkpoint else None
    check_output(output, found.files if found else [], force=force)
    return FinetunePlan(spec, found, track_test, output)


def plan_evaluate(
    spec: Spec,
    checkpoints: Sequence[Path],
    split: Literal["train", "val", "test"],
    bars: dict[str, float],
    output: Path | None,
    *,
    force: bool,
) -> EvaluatePlan:
    """Check the checkpoints' headers, the bars and the output.

    Raises:
        UsageError: a checkpoint is not there, or a bar is for no figure of this loss.
        CheckpointError: a checkpoint is damaged.
    """
    figure = "accuracy" if spec.loss == "cross_entropy" else "r2"
    for name in bars:
        if name != figure:
            raise UsageError(f"--fail-under {name}: with the loss {spec.loss} there is a bar for '{figure}' only")
    found = tuple(read_checkpoint(path) for path in checkpoints)
    if output:
        check_output(output, [file for checkpoint in found for file in checkpoint.files], force=force)
    return EvaluatePlan(spec, found, split, bars, output)
