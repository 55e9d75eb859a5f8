"""Whether experts know the same classes in the same order, so that their heads can be blended. Needs no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from glue_cli.blend.misfit import Misfit
from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.classes import are_same_classes, class_names_of, is_numbering, listed
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint

_HEAD = re.compile(r"(^|[._])(classifier|score|fc|heads?|logits|out_proj|linear)([._]|$)")  # usual names of heads
_ADAPTERS = "mix adapters that were trained for the same classes, in the same order"


@dataclass(frozen=True)
class ComparedClasses:
    """The result of comparing the experts' classes.

    Attributes:
        names: the names of the blend's outputs; empty if no expert gives names, or if a new head is made.
        notes: sentences to show the user.
        misfits: why heads cannot be blended row by row; empty if they can.
    """

    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    misfits: tuple[Misfit, ...] = ()


def compare_classes(experts: Sequence[Checkpoint], recipe: Recipe) -> ComparedClasses:
    """Compare the class names of experts whose tensors can be blended, if the blend has a row for each class.

    Args:
        recipe: the recipe before tensors are aligned by token. Heads that it copies or makes may differ.
    Returns:
        with a misfit if the experts have different classes, or the same in different orders, and their heads would be
        blended row by row.
    """
    if recipe.made:
        return ComparedClasses()
    known = [class_names_of(expert) for expert in experts]
    head = _guess_head(experts[0], known)
    owner = _owner_of(head, recipe)
    if owner is not None:
        return ComparedClasses(known[owner])
    if not head:  # a backbone alone: it lists the classes that it was trained for, but has no outputs for them
        return ComparedClasses()
    pattern = _pattern_of(head)
    return _compare(experts, known, f"align them by name: --head '{pattern}' --head-policy align")


def compare_classes_of_adapters(adapters: Sequence[Checkpoint], base: Checkpoint | None) -> ComparedClasses:
    """Compare the class names of adapters; if none gives any, use those of the base, if it is known.

    Returns:
        with a misfit if they have different classes, or the same in different orders.
    """
    compared = _compare(adapters, [class_names_of(adapter) for adapter in adapters], _ADAPTERS)
    return compared if compared.names or compared.misfits or base is None else ComparedClasses(class_names_of(base))


def _compare(experts: Sequence[Checkpoint], known: Sequence[tuple[str, ...]], hint: str) -> ComparedClasses:
    said = [names for names in known if names]
    if not said:
        return ComparedClasses()
    names = next((names for names in said if not is_numbering(names)), said[0])
    if not all(are_same_classes(own, names) for own in said):
        is_order = all(sorted(own) == sorted(names) for own in said)
        message = f"the experts know {'their classes in different orders' if is_order else 'different classes'}"
        items = tuple(f"{expert.path}: {listed(own)}" for expert, own in zip(experts, known, strict=True) if own)
        return ComparedClasses(misfits=(Misfit("classes", message, items, hint),))
    silent = [str(expert.path) for expert, own in zip(experts, known, strict=True) if not own]
    if not silent:
        return ComparedClasses(names)
    rest = f" and {len(silent) - 1} more do" if len(silent) > 1 else " does"
    note = f"{silent[0]}{rest} not say the names of the classes, which are taken to be those of the others"
    return ComparedClasses(names, (f"{note}: {listed(names)}",))


def _guess_head(expert: Checkpoint, known: Sequence[Sequence[str]]) -> list[str]:
    """Return the tensors that have a row for each class: those of a module named like a head, else all of them."""
    sizes = {len(names) for names in known if names}
    candidates = [
        name
        for name, entry in expert.entries.items()
        if entry.dtype in FLOAT_DTYPES and entry.shape and entry.shape[0] in sizes
    ]
    return [name for name in candidates if _HEAD.search(name)] or candidates


def _owner_of(head: Sequence[str], recipe: Recipe) -> int | None:
    """Return the expert that all tensors of a head's module are copied from; None if there is none."""
    modules: dict[str, set[int | None]] = {}
    for name in head:
        modules.setdefault(name.rpartition(".")[0], set()).add(recipe.copied_from.get(name))
    return next((k for owners in modules.values() if len(owners) == 1 for k in owners if k is not None), None)


def _pattern_of(names: Sequence[str]) -> str:
    """Return a pattern for tensors that all belong to one module; else a placeholder for the user to fill in."""
    modules = {name.rpartition(".")[0] for name in names}
    if len(modules) > 1:
        return "PATTERN"
    return f"{modules.pop()}.*" if "." in names[0] else names[0]
