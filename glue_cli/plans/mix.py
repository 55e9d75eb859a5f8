"""What `glue mix` is asked to do, checked from the headers alone: before torch is imported and any data is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from glue_cli.blend.adapters.adapter import CONFIG, WEIGHTS, Adapter, check_adapters, is_adapter, read_adapter
from glue_cli.blend.adapters.base import AdaptedBase, fit
from glue_cli.blend.coefficients import check_alpha
from glue_cli.blend.compatibility import check_compatible, check_copied
from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.blend.rules import NO_RULES, HeadPlan, TensorRules, head_classes_of, plan_recipe
from glue_cli.blend.vocabulary import check_vocabularies
from glue_cli.checkpoints.destination import Destination, plan_destination
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import TORCH_SUFFIXES, Checkpoint
from glue_cli.checkpoints.read import read_checkpoint, read_experts
from glue_cli.data import check_data
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError
from glue_cli.foundation.outputs import check_room
from glue_cli.methods import METHODS
from glue_cli.plans.outputs import Outputs
from glue_cli.search.criterion import criterion_of
from glue_cli.spec.goal import goal_named
from glue_cli.spec.schema import Spec

OUTPUT_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BANKS = ("auto", "device", "host", "disk")
_FILES = (".safetensors", ".json", *TORCH_SUFFIXES)  # how the names of checkpoints' files end


@dataclass(frozen=True)
class MixPlan:
    """What `glue mix` is asked to do.

    Attributes:
        method: a name of `METHODS`, or "alpha" for given coefficients.
        alpha: given coefficients [K]; sizes: numbers of training examples [K]; None where the method needs none.
        recipe: how each tensor comes about; head: the head that is made anew, if any.
        head_classes: of a head that is not blended; none where it is, or its classes are not known.
        dtype: a key of `OUTPUT_DTYPES` that is wanted for all of the blend; None where each tensor keeps its own.
        refreshes: whether BatchNorm's statistics are taken anew from the target's data.
        adapters: the experts as adapters, where they are; adapted: them on their base, where that is known.
        merges: whether adapters are merged into their base; else the blend is an adapter too.
        bank: where the experts are kept in a search: one of `BANKS`.
        memory_bytes: what the blend's buffers may take; hashes: the experts' sha256, to be taken; empty for none.
        explains: whether each expert's leave-one-out value is wanted.
        spec: None where nothing needs one.
    """

    experts: tuple[Checkpoint, ...]
    method: str
    alpha: tuple[float, ...] | None
    sizes: tuple[int, ...] | None
    destination: Destination
    recipe: Recipe = PLAIN
    head: HeadPlan | None = None
    head_classes: tuple[str, ...] = ()
    dtype: str | None = None
    refreshes: bool = False
    adapters: tuple[Adapter, ...] = ()
    adapted: AdaptedBase | None = None
    merges: bool = False
    bank: str = "auto"
    memory_bytes: int = 192 << 20
    hashes: tuple[StreamedHash, ...] = ()
    explains: bool = False
    spec: Spec | None = None
    seed: int = 0


def plan_mix(
    paths: Sequence[Path],
    outputs: Outputs,
    *,
    method: str | None,
    alpha: Sequence[float] | None,
    sizes: Sequence[int] | None,
    rules: TensorRules = NO_RULES,
    base: Path | None = None,
    dtype: str | None,
    max_shard_bytes: int | None,
    bank: str = "auto",
    memory_bytes: int,
    hashing: bool,
    explains: bool = False,
    spec: Spec | None,
    seed: int,
) -> MixPlan:
    """Check coefficients, experts and output against each other, from the headers alone.

    Args:
        base: what adapters are merged into; None makes an adapter of adapters.
    Raises:
        UsageError: the command line does not make sense, or the method needs a package that is not installed.
        CheckpointError: an expert is damaged, or they do not fit each other.
        SpecError: the spec's objective is not there, or does not fit the method or the loss; or its data section does
            not fit the format.
        DataError: there is no folder of data.
    """
    _check_numbers(paths, alpha, sizes)
    assert outputs.result
    plan = MixPlan(
        experts=(),
        method=method or "alpha",
        alpha=tuple(alpha) if alpha is not None else None,
        sizes=tuple(sizes) if sizes is not None else None,
        destination=Destination(outputs.result, (), (outputs.result,)),
        bank=bank,
        memory_bytes=memory_bytes,
        explains=explains,
        spec=spec,
        seed=seed,
    )
    if any(is_adapter(path) for path in paths):
        if dtype or max_shard_bytes is not None:
            raise UsageError(
                "adapters are mixed in their own dtypes, into one file", hint="leave --dtype and --max-shard-size out"
            )
        plan = _plan_adapters(plan, paths, outputs, rules, base)
    else:
        if base:
            raise UsageError("--base is for adapters, and the experts are whole checkpoints", hint="leave --base out")
        plan = _plan_checkpoints(plan, paths, outputs, rules, dtype, max_shard_bytes)
    if method is not None and METHODS[method].needs == "sizes" and sizes is None:
        plan = replace(plan, sizes=tuple(_recorded_sizes(plan.experts)))
    if spec:
        check_data(spec.data, spec.path(spec.data.root))
    if spec and _is_search(plan):
        _check_objective(plan.method, spec)
    return replace(plan, hashes=tuple(StreamedHash(expert) for expert in plan.experts)) if hashing else plan


def _check_numbers(paths: Sequence[Path], alpha: Sequence[float] | None, sizes: Sequence[int] | None) -> None:
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


def _plan_checkpoints(
    plan: MixPlan,
    paths: Sequence[Path],
    outputs: Outputs,
    rules: TensorRules,
    dtype: str | None,
    max_shard_bytes: int | None,
) -> MixPlan:
    experts = read_experts(paths)
    factors = [name for name in experts[0].entries if "lora_A." in name or "lora_embedding_A" in name]
    if factors:
        raise CheckpointError(
            f"'{paths[0]}' holds the factors of an adapter, whose means are not the mean of their products",
            items=factors,
            hint="name the adapter's folder, with its adapter_config.json",
        )
    recipe, head = plan_recipe(experts, rules, _groups_of(plan))
    destination = plan_destination(
        plan.destination.result,
        recipe.describe(experts, OUTPUT_DTYPES[dtype] if dtype else None),
        model_folder=experts[0].folder,
        max_shard_bytes=max_shard_bytes,
    )
    outputs.check(experts, plan.spec, destination)
    check_room(destination.result, destination.n_bytes)
    check_vocabularies(experts)
    check_compatible(experts, dtype_given=dtype is not None, apart=recipe.apart)
    check_copied(experts, apart=recipe.apart)
    return replace(
        plan,
        experts=experts,
        destination=destination,
        recipe=recipe,
        head=head,
        head_classes=head_classes_of(experts, rules, head),
        dtype=dtype,
        refreshes=rules.batchnorm == "refresh",
    )


def _groups_of(plan: MixPlan) -> Mapping[str, str | list[str]]:
    """Return the groups that get an alpha of their own: where one is searched for."""
    return plan.spec.mix.groups if plan.spec and _is_search(plan) else {}


def _is_search(plan: MixPlan) -> bool:
    return plan.method in METHODS and METHODS[plan.method].is_search


def _check_objective(method: str, spec: Spec) -> None:
    """Check that method and objective are there, and go together; imports the user's module."""
    if method == "cmaes" and find_spec("cmaes") is None:
        raise UsageError(
            "--method cmaes needs the package cmaes, which is not installed", hint="pip install 'glue-cli[search]'"
        )
    if method == "fullgrad" and not goal_named(spec.objective).is_smooth:
        raise SpecError(
            f"--method fullgrad follows a gradient, which objective: {spec.objective} does not have",
            hint="use --method spsa or cmaes, or set objective: loss",
        )
    criterion_of(spec.objective, spec.loss, spec.path("."))


def _plan_adapters(
    plan: MixPlan,
    paths: Sequence[Path],
    outputs: Outputs,
    rules: TensorRules,
    base: Path | None,
) -> MixPlan:
    if rules != NO_RULES or _groups_of(plan):
        raise UsageError(
            "adapters are mixed as they are: no rules for heads, tensors, groups or BatchNorm",
            hint="merge each adapter into its base, and mix those",
        )
    if plan.bank != "auto":
        raise UsageError(
            "--bank is for whole checkpoints: a search over adapters keeps their updates where the model is",
            hint="leave --bank out",
        )
    whole = [str(path) for path in paths if not is_adapter(path)]
    if whole:
        raise CheckpointError("adapters and whole checkpoints cannot be mixed", items=whole, hint="name either kind")
    adapters = tuple(read_adapter(path) for path in paths)
    experts = tuple(replace(adapter.checkpoint, path=adapter.path) for adapter in adapters)
    output, searched = plan.destination.result, _base_of(plan, base)
    if searched is None and plan.method in METHODS and METHODS[plan.method].needs_data:
        raise SpecError("a search over adapters needs their base model", hint="set model.args.path to its folder")
    adapted = fit(searched, adapters) if searched else None
    if base and searched:
        destination = plan_destination(output, PLAIN.describe([searched]), model_folder=searched.folder)
        if destination.index:
            raise UsageError(f"the output '{output}' is an index, and the blend one file", hint="-o prior.safetensors")
        outputs.check([*experts, searched], plan.spec, destination)
    else:
        check_adapters(adapters)
        if output.name.endswith(_FILES):
            raise UsageError(f"the output '{output}' is a file's name, an adapter is a folder", hint="-o prior/")
        destination = Destination(output, (), (output / CONFIG, output / WEIGHTS))
        outputs.check(experts, plan.spec, destination)
    return replace(
        plan,
        experts=experts,
        destination=destination,
        adapters=adapters,
        adapted=adapted,
        merges=base is not None,
    )


def _base_of(plan: MixPlan, base: Path | None) -> Checkpoint | None:
    """Return the base: as given, or as the spec's model says, whose folder a search needs anyway."""
    folder = plan.spec.model.args.get("path") if plan.spec else None
    if base:
        return read_checkpoint(base)
    return read_checkpoint(plan.spec.path(folder)) if plan.spec and isinstance(folder, str) else None


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
