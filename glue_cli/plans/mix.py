"""What `glue mix` is asked to do, checked from the headers alone: before torch is imported and any data is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli.blend.adapters.adapter import is_adapter
from glue_cli.blend.classes import compare_classes_of_adapters
from glue_cli.blend.coefficients import check_alpha
from glue_cli.blend.comparing import compare, name_alike
from glue_cli.blend.misfit import refuse
from glue_cli.blend.rules import Groups, head_classes_of, plan_recipe
from glue_cli.blend.tensor_rules import NO_RULES, TensorRules
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.hub import fetch, parse
from glue_cli.checkpoints.read import check_is_there, read_experts
from glue_cli.checkpoints.weight_sets import check_any_has
from glue_cli.foundation.errors import SpecError, UsageError
from glue_cli.foundation.output_files import refuse_input
from glue_cli.plans.mix_adapters import plan_adapters
from glue_cli.plans.mix_card import about_blend
from glue_cli.plans.mix_folders import check_groups, plan_blend_destination, with_parts
from glue_cli.plans.mix_like import Like, record_of
from glue_cli.plans.mix_records import (
    AS_IT_COMES,
    BANKS,
    NO_EXTRAS,
    Adapters,
    Coefficients,
    Search,
    Tensors,
    Writing,
)
from glue_cli.plans.mix_statistics import plan_groups, plan_statistics
from glue_cli.plans.mix_tokens import check_tokenizer_is_written, spec_with_rows
from glue_cli.plans.outputs import Outputs
from glue_cli.results.card import About

if TYPE_CHECKING:  # given coefficients need no spec, and importing its schema takes longer than the blend
    from glue_cli.spec.schema import Spec


_WITHOUT_LABELS = ("target", "prompt", "messages")  # columns beside which labels are not read


@dataclass(frozen=True)
class MixPlan:
    """What `glue mix` is asked to do, in parts that each serve one step of the work.

    Attributes:
        adapters: None if the experts are whole checkpoints.
        destination: the files that the blend is written to; writing: how they are written.
        spec: None if nothing needs one.
        record: what the blend's metadata will say of how its tensors were made, as far as the plan knows it.
        about: what its model card says besides the metadata.
        like: the blend to make again; None for a new one.
    """

    experts: tuple[Checkpoint, ...]
    coefficients: Coefficients
    tensors: Tensors
    adapters: Adapters | None
    destination: Destination
    writing: Writing
    search: Search
    spec: "Spec | None"
    seed: int
    record: Mapping[str, Any]
    about: About
    like: Like | None

    @property
    def method(self) -> str:
        """How alpha is chosen: a name in `METHODS`, or `GIVEN`."""
        return self.coefficients.method


def plan_mix(
    paths: Sequence[Path],
    outputs: Outputs,
    coefficients: Coefficients,
    *,
    rules: TensorRules = NO_RULES,
    base: Path | None = None,
    weights: str | None = None,
    writing: Writing = AS_IT_COMES,
    search: Search = NO_EXTRAS,
    spec: "Spec | None" = None,
    seed: int = 0,
    like: Like | None = None,
) -> MixPlan:
    """Check coefficients, experts and output against each other, from the headers alone.

    Args:
        base: the model that adapters are merged into; None mixes adapters into an adapter.
        weights: which set of weights to read from an expert that has several; None chooses by convention.
        like: a blend to make again; the other arguments then come from its recipe.
    Raises:
        UsageError: the options contradict each other, or the method needs a package that is not installed.
        CheckpointError: an expert is damaged, or they do not fit each other.
        SpecError: the spec's objective does not exist, or does not fit the method or the loss; its data section does
            not fit the format; or glue has no loss for its model.
        DataError: there is no folder of data.
        ResourceError: the disk has no room for the blend.
    """
    _check_numbers(paths, coefficients)
    if spec:
        from glue_cli.models.tasks import check_task  # a plain blend has no model

        check_task(spec.model.arch)
    paths, base = [fetch(path) for path in paths], fetch(base) if base else None
    if spec:
        from glue_cli.plans.hub import fetched

        spec = fetched(spec)
    groups: Groups = {}
    if like:
        assert outputs.result
        refuse_input(outputs.result, [like.blend.path, *like.blend.files])
        if (base is None) != (like.said.recipe.base is None):
            want = "was merged into a base" if base is None else "was not merged into a base"
            raise UsageError(f"--like {like.blend.path}: it {want}", hint="name that base with --base, or none")
    if any(is_adapter(path) for path in paths):
        if weights is not None:
            raise UsageError("--weights is for files of whole models, and an adapter has one set", hint="leave it out")
        if rules != NO_RULES or (spec and coefficients.is_search and spec.mix.named_groups):
            raise UsageError(
                "adapters are mixed as they are: no rules for heads, tensors, groups or BatchNorm",
                hint="merge each adapter into its base, and mix those",
            )
        experts, adapters, destination = plan_adapters(paths, outputs, coefficients, base, writing, search, spec)
        compared = compare_classes_of_adapters(experts, adapters.adapted.base if adapters.adapted else None)
        refuse(compared.misfits)
        tensors = Tensors(classes=compared.names, notes=(*adapters.notes, *compared.notes))
    else:
        if base:
            raise UsageError("--base is for adapters, and the experts are whole checkpoints", hint="leave --base out")
        if search.bank not in BANKS:
            raise UsageError(f"--bank {search.bank} is for adapters", hint=f"--bank {'|'.join(BANKS)}")
        groups = like.said.recipe.groups if like else plan_groups(coefficients, len(paths), spec)
        wanted = [expert.weights for expert in like.said.experts] if like else [weights] * len(paths)
        experts = read_experts(paths, wanted)
        check_any_has(experts, weights)
        experts, tensors, destination = _plan_checkpoints(experts, outputs, rules, groups, coefficients, writing, spec)
        adapters = None
        if spec:
            from glue_cli.plans.spec_folder import check_folders

            spec = spec_with_rows(spec, tensors.tokens) if tensors.tokens else spec
            if tensors.head_classes and spec.model_folder and "num_labels" not in spec.model.args:
                spec = spec.with_model_args(num_labels=len(tensors.head_classes))
            check_folders(spec, experts[:1])  # they are alike
    if coefficients.lacks_sizes:
        coefficients = replace(coefficients, sizes=tuple(_recorded_sizes(experts)))
    if spec:
        from glue_cli.data import check_data
        from glue_cli.data.model_normalisation import as_models_say

        check_data(spec.data, spec.path(spec.data.root))
        spec = as_models_say(spec, experts)
        if coefficients.is_search:
            _check_objective(coefficients.method, spec)
        elif coefficients.needs_data:
            _check_has_accuracies(coefficients.method, spec)
    destination = replace(destination, force=outputs.force)
    record = record_of(experts, rules, groups, writing)
    about = about_blend(experts, adapters, tensors)
    return MixPlan(
        experts, coefficients, tensors, adapters, destination, writing, search, spec, seed, record, about, like
    )


def _check_numbers(paths: Sequence[Path], coefficients: Coefficients) -> None:
    if not paths:
        raise UsageError("no experts given", hint="name their files: glue mix ... experts/*.safetensors")
    for path in paths:
        if not parse(str(path)):  # what is on the Hub is fetched once the numbers fit
            check_is_there(path)
    if coefficients.alpha is not None:
        check_alpha(coefficients.alpha, len(paths))
    sizes = coefficients.sizes
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
    experts: tuple[Checkpoint, ...],
    outputs: Outputs,
    rules: TensorRules,
    groups: Groups,
    coefficients: Coefficients,
    writing: Writing,
    spec: "Spec | None",
) -> tuple[tuple[Checkpoint, ...], Tensors, Destination]:
    """Check whole checkpoints, and decide how their tensors are blended and where the blend goes."""
    assert outputs.result
    experts, renamed = name_alike(experts)
    experts, parts, lacking = with_parts(experts, outputs.result)
    if parts and groups == "blocks":  # all modules of a folder share one alpha
        groups = {}
    planned, head = plan_recipe(experts, rules, groups)
    check_groups(planned, experts, parts)
    compared = compare(experts, planned, dtype_given=writing.dtype is not None)
    refuse(compared.misfits)
    experts, recipe, tokens = compared.experts, compared.recipe, compared.tokens
    keeper = experts[tokens.keeper if tokens else 0]
    destination = plan_blend_destination(experts, parts, recipe, keeper, outputs.result, writing)
    outputs.check(experts, spec, destination)
    outputs.check_room(destination.n_bytes)
    if tokens:
        check_tokenizer_is_written(tokens, experts, destination)
    own = head_classes_of(experts, rules, head)
    planned_tensors = Tensors(
        recipe,
        head,
        head_classes=own,
        classes=own or compared.classes,
        statistics=plan_statistics(rules.batchnorm, experts, recipe, coefficients, spec),
        tokens=tokens,
        notes=(*renamed, *lacking, *compared.notes),
    )
    return experts, planned_tensors, destination


def _check_objective(method: str, spec: "Spec") -> None:
    """Check that method and objective exist and go together; imports the user's module."""
    from glue_cli.search.criterion import criterion_of
    from glue_cli.spec.goal import goal_named

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


def _check_has_accuracies(method: str, spec: "Spec") -> None:
    """Check that nothing in the spec says that the data have no labels; they may lack them all the same."""
    unlabelled = [f"data.columns.{role}" for role in _WITHOUT_LABELS if role in spec.data.columns]
    if spec.loss == "mse" or unlabelled:
        given = "loss: mse" if spec.loss == "mse" else unlabelled[0]
        raise SpecError(
            f"--method {method} needs accuracies, which there are none of with {given}", hint="use --method spsa"
        )


def _recorded_sizes(experts: Sequence[Checkpoint]) -> list[int]:
    """Return the number of training examples that each expert records, [K]."""
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
