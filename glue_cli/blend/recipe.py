"""How each tensor of a blend is made: with which coefficients, or copied from which expert. Needs no torch."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, Described
from glue_cli.checkpoints.hub import is_called
from glue_cli.foundation.errors import SpecError, UsageError


@dataclass(frozen=True)
class Recipe:
    """Rules for each tensor; a tensor without a rule is blended with the first group's coefficients.

    Attributes:
        groups: names of the coefficient vectors, the rows of alpha [G, K], each on its own simplex.
        group_of: the group of each tensor that is not in the first group.
        copied_from: the number of the expert that a tensor is copied from.
        made: tensors that are computed elsewhere, such as an aligned head, with their shapes.
    """

    groups: tuple[str, ...] = ("all",)
    group_of: Mapping[str, int] = field(default_factory=dict)
    copied_from: Mapping[str, int] = field(default_factory=dict)
    made: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def apart(self) -> frozenset[str]:
        """The tensors that are not blended, so that the experts may differ in them."""
        return frozenset((*self.copied_from, *self.made))

    def is_blended(self, name: str) -> bool:
        return name not in self.copied_from and name not in self.made

    def coefficients(self, name: str, alphas: Sequence[Sequence[float]]) -> Sequence[float]:
        """Return the coefficients [K] of a tensor, from alphas [G, K]; one-hot if it is copied."""
        alpha = alphas[self.group_of.get(name, 0)]
        if name not in self.copied_from:
            return alpha
        return [float(k == self.copied_from[name]) for k in range(len(alpha))]

    def describe(self, experts: Sequence[Checkpoint], dtype: str | None = None) -> list[Described]:
        """Return the tensors of the blend, in the first expert's order.

        Args:
            dtype: the floating-point dtype of the blend, such as "F16"; None keeps each tensor's own.
        """
        names = dict.fromkeys(experts[0].entries)
        names.update(dict.fromkeys(name for name in self.copied_from if name not in names))
        described = []
        for name in names:
            source = experts[self.copied_from.get(name, 0)].entries.get(name)
            if source is not None:  # copied from an expert that lacks it: the blend lacks it too
                own = dtype if dtype and source.dtype in FLOAT_DTYPES else source.dtype
                described.append((name, own, self.made.get(name, source.shape)))
        return described


def with_copies(recipe: Recipe, copied: Mapping[str, int]) -> Recipe:
    """Return a recipe that copies more tensors from experts; tensors that already have a rule keep it."""
    if not copied:
        return recipe
    return replace(recipe, copied_from={**copied, **recipe.copied_from})


PLAIN = Recipe()  # every tensor is blended, all with the same alpha


def group_tensors(
    names: Iterable[str], patterns: Mapping[str, str | Sequence[str]]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Assign tensors to groups by the first pattern that matches; the others form the group `rest`.

    Args:
        patterns: one or several patterns for each group, in which * stands for anything: `encoder.*`.
    Returns:
        the groups' names, and for each tensor the position of its group among them.
    Raises:
        SpecError: a group gets no tensor.
    """
    group_by_name: dict[str, str] = {}
    wanted = {group: (given,) if isinstance(given, str) else tuple(given) for group, given in patterns.items()}
    for name in names:
        group_by_name[name] = next((g for g, given in wanted.items() if matches(name, given)), "rest")
    groups = [*wanted, *(["rest"] if "rest" in group_by_name.values() and "rest" not in wanted else [])]
    empty = [f"{group}: {', '.join(wanted[group])}" for group in groups if group not in group_by_name.values()]
    if empty:
        raise SpecError("mix.groups: no tensor of the experts matches", items=empty, hint="mend the patterns")
    return tuple(groups), {name: groups.index(group) for name, group in group_by_name.items()}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a tensor's name matches one of the patterns, in which * stands for anything."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def find_matching(experts: Sequence[Checkpoint], patterns: Sequence[str], option: str) -> list[str]:
    """Return the tensors that match one of the patterns, whichever expert has them.

    Raises:
        UsageError: a pattern matches none.
    """
    names = dict.fromkeys(name for expert in experts for name in expert.entries)
    useless = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if useless:
        raise UsageError(
            f"{option} '{useless[0]}' matches no tensor of the experts",
            hint=f"tensors are called like '{next(iter(names))}'; * stands for anything",
        )
    return [name for name in names if matches(name, patterns)]


def find_expert(experts: Sequence[Checkpoint], wanted: str, option: str) -> int:
    """Return the number of the expert that `wanted` refers to by its name, file, path or number.

    Raises:
        UsageError: no expert matches, or several do.
    """
    names = [{e.path.name, e.path.stem, str(e.glue.get("name", e.path.stem))} for e in experts]
    numbers = [k for k, known in enumerate(names) if wanted in known or _is_path(wanted, experts[k].path)]
    if not numbers:
        numbers = [k for k, expert in enumerate(experts) if _is_same_file(expert.path, wanted)]
    if not numbers and wanted.isdecimal() and int(wanted) < len(experts):
        numbers = [int(wanted)]
    if len(numbers) != 1:
        what = "no expert" if not numbers else f"{len(numbers)} experts"
        listed = ", ".join(f"{k}: {expert.name}" for k, expert in enumerate(experts))
        raise UsageError(f"{option} {wanted}: {what} of that name", hint=f"name one of {listed}")
    return numbers[0]


def _is_path(wanted: str, path: Path) -> bool:
    """Tell whether a text is this path in any spelling, as ./b.safetensors or b/, or its name on the Hub."""
    return is_called(path, wanted) or bool(wanted) and os.path.normpath(wanted) == os.path.normpath(path)


def _is_same_file(path: Path, wanted: str) -> bool:
    try:
        return os.path.samefile(path, wanted)
    except (OSError, ValueError):
        return False
