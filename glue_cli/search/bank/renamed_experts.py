"""Experts with the tensor names and shapes that the model has in memory, even if their files use others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from glue_cli.blend.finite import check_finite
from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.checkpoints.tensors import read_tensor
from glue_cli.foundation.errors import CheckpointError, SpecError

Value = TypeVar("Value")


@dataclass(frozen=True)
class RenamedExperts:
    """Experts and their recipe, with tensors called by the model's names.

    Attributes:
        headers: one header per expert, [K]; a tensor made of several has the file and offset of its first part.
        recipe: the rule for each tensor.
        originals: the experts as they are on disk, [K].
        sources: the tensors on disk that each tensor is made of; empty if names and tensors are the same on disk.
    """

    headers: Sequence[Checkpoint]
    recipe: Recipe
    originals: Sequence[Checkpoint]
    sources: Mapping[str, Source]

    def read(self, expert: int, name: str, descriptors: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Read one tensor of an expert from its open files.

        Raises:
            CheckpointError: the tensor has NaN or infinity in this dtype.
        """
        original, source = self.originals[expert], self.sources.get(name, Source((name,)))
        parts = {part: read_tensor(original, descriptors, part).to(dtype) for part in source.names}
        for part, tensor in parts.items():
            check_finite(original, part, tensor)
        return source.take(parts)

    def name_on_disk(self, name: str) -> str:
        """Return the name, in the experts' files, of a tensor or of the first tensor that it is made of."""
        return self.sources[name].names[0] if name in self.sources else name


def rename_experts(experts: Sequence[Checkpoint], recipe: Recipe, naming: Naming | None) -> RenamedExperts:
    """Give the experts' tensors the names that the model uses.

    Args:
        recipe: with the names on disk.
        naming: which of the experts' tensors become which of the model's; None if the names are the same.
    Raises:
        SpecError: the recipe treats the parts of one model tensor differently.
        CheckpointError: an expert's parts cannot be put together.
    """
    if naming is None:
        return RenamedExperts(experts, recipe, experts, {})
    sources = dict(naming.distinct())
    for name, source in sources.items():
        _check_treated_alike(name, source, recipe)

    def renamed(rules: Mapping[str, Value]) -> dict[str, Value]:
        return {name: rules[source.names[0]] for name, source in sources.items() if source.names[0] in rules}

    own = replace(
        recipe,
        group_of=renamed(recipe.group_of),
        copied_from=renamed(recipe.copied_from),
        made=renamed(recipe.made),
    )
    return RenamedExperts([_rename(expert, sources) for expert in experts], own, experts, sources)


def _rename(expert: Checkpoint, sources: Mapping[str, Source]) -> Checkpoint:
    entries = {}
    for name, source in sources.items():
        if any(part not in expert.entries for part in source.names):
            continue  # only one expert has this tensor, and it is copied from there
        entry = source.entry(expert)
        if entry is None:
            raise CheckpointError(
                f"{expert.path}: '{name}' cannot be made from '{source.names[0]}' and {len(source.names) - 1} more",
                hint="copy or download it again",
            )
        entries[name] = entry._replace(name=name)
    return replace(expert, entries=entries)


def _check_treated_alike(name: str, source: Source, recipe: Recipe) -> None:
    treatments = {
        part: (recipe.group_of.get(part, 0), recipe.copied_from.get(part), part in recipe.made)
        for part in source.names
    }
    if len(set(treatments.values())) > 1:
        raise SpecError(
            f"the model holds '{name}' as one tensor, and its parts are treated differently",
            items=[f"'{part}'{_described(recipe, part)}" for part in source.names],
            hint="mend mix.groups, or --include, --exclude and --head, so that its parts are treated alike",
        )


def _described(recipe: Recipe, part: str) -> str:
    if part in recipe.made:
        return " is made anew"
    if part in recipe.copied_from:
        return f" is copied from expert {recipe.copied_from[part]}"
    return f" is in the group '{recipe.groups[recipe.group_of.get(part, 0)]}'"
