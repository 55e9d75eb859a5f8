"""Whether experts can be blended: everything that is compared before a weight is read. Needs no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from glue_cli.blend.classes import compare_classes
from glue_cli.blend.compatibility import check_compatible, check_copied
from glue_cli.blend.configurations import check_configurations
from glue_cli.blend.constants import find_constants
from glue_cli.blend.differences import settle_differences
from glue_cli.blend.factors import check_no_factors
from glue_cli.blend.quantised import check_unquantised
from glue_cli.blend.recipe import Recipe, with_copies
from glue_cli.blend.tokens import TokenPlan, align_tokens
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.spelling import align_names
from glue_cli.foundation.batchnorm_names import COUNTER


@dataclass(frozen=True)
class Comparison:
    """What the comparison of experts that can be blended found.

    Attributes:
        experts: with all tensors of the first, where those that lack one have it under another name.
        recipe: as given; tensors that are aligned by token are made, constants and buffers that differ are copied.
        tokens: how the rows of the embeddings are aligned; None where they lie alike.
        classes: the names of the blend's outputs; none where nobody says them, or the head is made anew.
        notes: sentences that the user is to see.
    """

    experts: tuple[Checkpoint, ...]
    recipe: Recipe
    tokens: TokenPlan | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def name_alike(experts: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """Give experts whose names differ from the first one's by their spelling alone the names that it has.

    Returns:
        the experts, and a sentence for each that was renamed.
    """
    first, *others = experts
    named, notes = [first], []
    for expert in others:
        spelling = {} if expert.entries.keys() == first.entries.keys() else _spelling(expert, first)
        if spelling:
            entries = {spelling.get(name, name): entry for name, entry in expert.entries.items()}
            expert = replace(expert, entries={name: entry._replace(name=name) for name, entry in entries.items()})
            other, own = next((other, own) for other, own in spelling.items() if other != own)
            notes.append(f"{expert.path} has the names of {first.path} in another spelling: '{other}' is '{own}'")
        named.append(expert)
    return tuple(named), tuple(notes)


def _spelling(expert: Checkpoint, first: Checkpoint) -> dict[str, str]:
    """Return the first expert's name of each of an expert's tensors; none unless one of the two has all the other has.

    BatchNorm's counters do not count: older versions of torch wrote none.
    """
    spelling = align_names(expert.entries, first.entries)
    is_renamed = any(other != own for other, own in spelling.items())
    is_whole = min(_n_named(expert.entries), _n_named(first.entries)) == _n_named(spelling)
    is_unique = len(expert.entries) == len({spelling.get(name, name) for name in expert.entries})
    return spelling if is_renamed and is_whole and is_unique else {}


def _n_named(names: Iterable[str]) -> int:
    return sum(not name.endswith(COUNTER) for name in names)


def compare(experts: Sequence[Checkpoint], recipe: Recipe, *, dtype_given: bool) -> Comparison:
    """Compare the experts in all that decides whether their blend has a meaning.

    Args:
        dtype_given: whether the user says what dtype to blend to, so that the experts' may differ.
    Raises:
        CheckpointError: they cannot be blended, with what differs.
    """
    check_no_factors(experts, apart=recipe.apart)
    check_unquantised(experts, apart=recipe.apart)
    settled = settle_differences(experts, apart=recipe.apart)
    experts, recipe = settled.experts, with_copies(recipe, settled.copied)
    notes = [*settled.notes, *check_configurations(experts)]
    tokens, given = align_tokens(experts, recipe, dtype_given=dtype_given), recipe
    if tokens:
        shapes = {name: tokens.shape_of(name, experts) for name in tokens.names}
        recipe = replace(recipe, made={**recipe.made, **shapes})
        notes.append(tokens.note(experts))
    check_compatible(experts, dtype_given=dtype_given, apart=recipe.apart)
    check_copied(experts, apart=recipe.apart)
    recipe = with_copies(recipe, find_constants(experts, apart=recipe.apart))
    classes = compare_classes(experts, given)
    return Comparison(settled.experts, recipe, tokens, classes.names, (*notes, *classes.notes))
