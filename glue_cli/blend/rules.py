"""Turn the user's rules for tensors into a recipe: groups, heads, copied tensors, BatchNorm. Needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from glue_cli.blend.compatibility import find_differences
from glue_cli.blend.recipe import PLAIN, Recipe, find_expert, find_matching, group_tensors, matches
from glue_cli.blend.submodules import find_blocks
from glue_cli.blend.tensor_rules import BATCHNORM_POLICIES, HEAD_POLICIES, TensorRules
from glue_cli.blend.tied import find_copies
from glue_cli.checkpoints.classes import class_names_of, match_spellings
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint
from glue_cli.foundation.batchnorm_names import is_statistic
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError

# Patterns of the tensors of each group, which get their own alpha; or the blocks that the model consists of.
Groups = Mapping[str, str | Sequence[str]] | Literal["blocks"]
_FROM = "from:"


@dataclass(frozen=True)
class HeadPlan:
    """A new head to make.

    Attributes:
        names: its tensors.
        known: each expert's classes; empty if the head is reset.
        classes: the classes of the target.
        group: the group whose alpha weights its rows.
    """

    names: tuple[str, ...]
    known: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    group: int


def plan_recipe(experts: Sequence[Checkpoint], rules: TensorRules, groups: Groups) -> tuple[Recipe, HeadPlan | None]:
    """Return the recipe that the rules give for these experts, and the head to make, if there is one.

    Args:
        groups: patterns of the tensors of each group, which get their own alpha; or the blocks of the model.
    Raises:
        UsageError: the rules contradict each other, or name tensors or experts that do not exist.
        CheckpointError: heads differ and no policy is given, or the experts do not name their classes.
        SpecError: a group has no tensor.
    """
    copied = _plan_copies(experts, rules)
    names, group_of = _plan_groups(experts, groups, copied)
    if rules.batchnorm.startswith(_FROM):
        k = find_expert(experts, rules.batchnorm.removeprefix(_FROM), "--batchnorm from:")
        copied |= dict.fromkeys(filter(is_statistic, experts[0].entries), k)
    elif rules.batchnorm not in BATCHNORM_POLICIES:
        raise UsageError(
            f"--batchnorm {rules.batchnorm}: no such policy", hint=f"wanted {', '.join(BATCHNORM_POLICIES)}"
        )
    head = _plan_head(experts, rules, copied, group_of)
    made = {}
    if head:
        for name in head.names:
            made[name] = (len(head.classes), *experts[0].entries[name].shape[1:])
    copied = {name: k for name, k in copied.items() if name not in made}
    return Recipe(names, group_of, copied, made), head


def _plan_groups(
    experts: Sequence[Checkpoint], groups: Groups, copied: Mapping[str, int]
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Return the groups' names, and for each tensor the position of its group among them.

    Tied tensors, of which a model reads one, are in one group.

    Raises:
        SpecError: a group has no tensor, or patterns put tied tensors into several.
    """
    own = experts[0].entries
    if groups == "blocks":
        names, group_of = find_blocks(name for name in own if name not in copied)
    elif groups:
        names, group_of = group_tensors(own, groups)
    else:
        return PLAIN.groups, PLAIN.group_of
    # BatchNorms that see the same features have the same statistics, but each is read.
    blended = [name for name in own if not (name in copied or is_statistic(name))] if len(names) > 1 else []
    parted = [tied for tied in find_copies(experts, blended) if len({group_of[name] for name in tied}) > 1]
    if parted and groups != "blocks":
        items = [", ".join(f"'{name}' in {names[group_of[name]]}" for name in tied) for tied in parted]
        raise SpecError(
            "mix.groups: copies of one tensor, of which a model reads one, are in several groups",
            items=items,
            hint="put them into one group",
        )
    group_of |= {name: group_of[tied[0]] for tied in parted for name in tied}
    left = sorted(set(group_of.values()))
    if groups == "blocks" and len(left) < 2:
        return PLAIN.groups, PLAIN.group_of
    return tuple(names[group] for group in left), {name: left.index(group) for name, group in group_of.items()}


def head_classes_of(experts: Sequence[Checkpoint], rules: TensorRules, head: HeadPlan | None) -> tuple[str, ...]:
    """Return the classes of a head that is made or copied; empty if it is blended, or if no names are known."""
    if head:
        return head.classes
    policy = rules.head_policy or "blend"
    if not policy.startswith(_FROM):
        return ()
    return class_names_of(experts[_owner_of_head(experts, policy)])


def _owner_of_head(experts: Sequence[Checkpoint], policy: str) -> int:
    return find_expert(experts, policy.removeprefix(_FROM), "--head-policy from:")


def _plan_copies(experts: Sequence[Checkpoint], rules: TensorRules) -> dict[str, int]:
    if not rules.include and not rules.exclude:
        if rules.copy_from:
            raise UsageError("--copy-from is for tensors that are not blended", hint="add --include or --exclude")
        return {}
    if rules.copy_from is None:
        raise UsageError(
            "--include and --exclude leave tensors out of the blend", hint="say whose they are: --copy-from EXPERT"
        )
    k = find_expert(experts, rules.copy_from, "--copy-from")
    included = find_matching(experts, rules.include, "--include") if rules.include else list(experts[0].entries)
    excluded = set(find_matching(experts, rules.exclude, "--exclude"))
    blended = [name for name in included if name not in excluded]
    if not any(experts[0].entries[name].dtype in FLOAT_DTYPES for name in blended if name in experts[0].entries):
        raise UsageError("--include and --exclude leave nothing to blend", hint="mend the patterns")
    kept = set(blended)
    return {name: k for expert in experts for name in expert.entries if name not in kept}


def _plan_head(
    experts: Sequence[Checkpoint], rules: TensorRules, copied: dict[str, int], group_of: Mapping[str, int]
) -> HeadPlan | None:
    """Return the head to make; one that is copied is added to `copied`."""
    if rules.head is None:
        if rules.head_policy or rules.classes:
            raise UsageError("--head-policy and --classes are for a head", hint="name its tensors: --head 'fc.*'")
        return None
    names = find_matching(experts, [rules.head], "--head")
    policy = rules.head_policy or "blend"
    if policy.startswith(_FROM):
        copied |= dict.fromkeys(names, _owner_of_head(experts, policy))
    elif policy == "blend":
        _check_equal_heads(experts, rules.head)
    elif policy not in ("align", "reset"):
        raise UsageError(f"--head-policy {policy}: no such policy", hint=f"wanted {', '.join(HEAD_POLICIES)}")
    if policy not in ("align", "reset"):
        if rules.classes:
            raise UsageError("--classes is for a head that is made anew", hint="add --head-policy align, or reset")
        return None
    if len(set(rules.classes)) < len(rules.classes):
        raise UsageError("--classes names a class twice", hint="name each class of the target once")
    needed = experts if policy == "align" else experts[:1]  # the new head is built like the first expert's
    lacking = [f"{expert.path}: '{name}'" for expert in needed for name in names if name not in expert.entries]
    if lacking:
        raise CheckpointError("these experts lack tensors of the head", items=lacking, hint="mend --head")
    known = tuple(class_names_of(expert) for expert in experts)
    silent = [str(expert.path) for expert, own in zip(experts, known, strict=True) if not own]
    if silent and (policy == "align" or not rules.classes):
        raise CheckpointError(
            "these experts do not say the names of their classes",
            items=silent,
            hint="experts trained on data with class names do, and Hugging Face folders; or --head-policy from:EXPERT",
        )
    classes = rules.classes or _all_of(known)
    known = tuple(_spelt_as(classes, own) for own in known)
    if policy == "align":
        strange = [name for name in classes if not any(name in own for own in known)]
        if len(strange) == len(classes):
            raise CheckpointError(
                "no expert knows any of the target's classes",
                items=[f"{expert.path}: {', '.join(own)}" for expert, own in zip(experts, known, strict=True)],
                hint="mend --classes, or choose --head-policy reset",
            )
    else:
        known = ((),) * len(experts)
    return HeadPlan(tuple(names), known, classes, group_of.get(names[0], 0))


def _all_of(known: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return every class that some expert has, spelled as in the first expert that has it."""
    classes: list[str] = []
    for own in known:
        classes += dict.fromkeys(name for name in _spelt_as(classes, own) if name not in classes)
    return tuple(classes)


def _spelt_as(classes: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    places = match_spellings(own, classes)
    return tuple(name if place is None else classes[place] for name, place in zip(own, places, strict=True))


def _check_equal_heads(experts: Sequence[Checkpoint], pattern: str) -> None:
    differences = [d for d in find_differences(experts) if d.kind != "dtype" and matches(d.name, [pattern])]
    if differences:
        raise CheckpointError(
            "the experts' heads differ, and cannot be blended",
            items=[difference.text for difference in differences],
            hint="these would work: --head-policy align (by class name), from:EXPERT, reset",
        )
