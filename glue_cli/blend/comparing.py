"""Compare experts in everything that decides whether they can be blended, before any weight is read. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from glue_cli.blend.classes import compare_classes
from glue_cli.blend.compatibility import copied_misfits, tensor_misfits
from glue_cli.blend.configurations import configuration_misfits
from glue_cli.blend.constants import find_constants
from glue_cli.blend.differences import settle_differences
from glue_cli.blend.factors import factor_misfits, mask_misfits
from glue_cli.blend.image_settings import image_notes
from glue_cli.blend.misfit import Misfit
from glue_cli.blend.quantised import quantised_misfits
from glue_cli.blend.recipe import Recipe, with_copies
from glue_cli.blend.spectral_norm import short_vectors
from glue_cli.blend.tokens import TokenPlan, align_tokens
from glue_cli.blend.vocabulary import preparation_notes
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.spelling import align_names
from glue_cli.foundation.batchnorm_names import COUNTER


@dataclass(frozen=True)
class Comparison:
    """The result of comparing experts.

    Attributes:
        experts: the experts; a tensor that one stores only under another name is added under the first expert's name.
        recipe: the given one, except that tensors aligned by token are made, constants and unequal buffers copied.
        tokens: how the rows of the embeddings are aligned; None if all experts have the same rows.
        classes: the names of the blend's outputs; empty if no expert gives names, or if a new head is made.
        notes: sentences to show the user.
        misfits: why the experts cannot be blended; empty if they can. The recipe is complete only then.
    """

    experts: tuple[Checkpoint, ...]
    recipe: Recipe
    tokens: TokenPlan | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    misfits: tuple[Misfit, ...] = ()


def name_alike(experts: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, ...], tuple[str, ...]]:
    """Rename tensors to the first expert's names in experts whose names differ only in spelling.

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
    """Return the first expert's name for each of an expert's tensors; empty unless one has all tensors of the other.

    BatchNorm's counters are ignored: older versions of torch wrote none.
    """
    spelling = align_names(expert.entries, first.entries)
    is_renamed = any(other != own for other, own in spelling.items())
    is_whole = min(_n_named(expert.entries), _n_named(first.entries)) == _n_named(spelling)
    is_unique = len(expert.entries) == len({spelling.get(name, name) for name in expert.entries})
    return spelling if is_renamed and is_whole and is_unique else {}


def _n_named(names: Iterable[str]) -> int:
    return sum(not name.endswith(COUNTER) for name in names)


def compare(experts: Sequence[Checkpoint], recipe: Recipe, *, dtype_given: bool) -> Comparison:
    """Compare the experts in everything that decides whether their blend makes sense.

    Args:
        dtype_given: whether the user chose the blend's dtype, so that those of the experts may differ.
    Returns:
        all that differs in every respect; only what requires equal tensors is not compared where they differ.
    """
    misfits = [*factor_misfits(experts, apart=recipe.apart), *quantised_misfits(experts, apart=recipe.apart)]
    misfits += mask_misfits(experts, apart=recipe.apart)
    settled = settle_differences(experts, apart=recipe.apart)
    experts, recipe = settled.experts, with_copies(recipe, settled.copied)
    of_configurations, notes = configuration_misfits(experts)
    notes = [*settled.notes, *notes, *short_vectors(experts, recipe.apart)]
    notes += [f"{expert.path}: left out are {', '.join(expert.beside)}" for expert in experts if expert.beside]
    folders = [expert.model_folder for expert in experts if expert.model_folder]
    notes += [*preparation_notes(folders), *image_notes(folders)]
    (tokens, of_tokens), given = align_tokens(experts, recipe, dtype_given=dtype_given), recipe
    if tokens:
        shapes = {name: tokens.shape_of(name, experts) for name in tokens.names}
        recipe = replace(recipe, made={**recipe.made, **shapes})
        notes.append(tokens.note(experts))
    of_tensors = tensor_misfits(experts, dtype_given=dtype_given, apart=recipe.apart)
    if not of_tensors:
        of_tensors = copied_misfits(experts, apart=recipe.apart)
        recipe = with_copies(recipe, find_constants(experts, apart=recipe.apart))
    classes = compare_classes(experts, given)
    misfits += [*of_configurations, *of_tokens, *of_tensors, *classes.misfits]
    return Comparison(settled.experts, recipe, tokens, classes.names, (*notes, *classes.notes), tuple(misfits))
