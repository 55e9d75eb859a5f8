"""Whether experts can be blended: everything that is compared before a weight is read. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from glue_cli.blend.compatibility import check_compatible, check_copied
from glue_cli.blend.configurations import check_configurations
from glue_cli.blend.factors import check_no_factors
from glue_cli.blend.recipe import Recipe
from glue_cli.blend.tokens import TokenPlan, align_tokens
from glue_cli.checkpoints.header import Checkpoint


@dataclass(frozen=True)
class Comparison:
    """What the comparison of experts that can be blended found.

    Attributes:
        recipe: as given, with the tensors that are aligned by token as tensors to be made.
        tokens: how the rows of the embeddings are aligned; None where they lie alike.
        notes: sentences that the user is to see.
    """

    recipe: Recipe
    tokens: TokenPlan | None
    notes: tuple[str, ...]


def compare(experts: Sequence[Checkpoint], recipe: Recipe, *, dtype_given: bool) -> Comparison:
    """Compare the experts in all that decides whether their blend has a meaning.

    Args:
        dtype_given: whether the user says what dtype to blend to, so that the experts' may differ.
    Raises:
        CheckpointError: they cannot be blended, with what differs.
    """
    check_no_factors(experts, apart=recipe.apart)
    notes = check_configurations(experts)
    tokens = align_tokens(experts, recipe, dtype_given=dtype_given)
    if tokens:
        shapes = {name: tokens.shape_of(name, experts) for name in tokens.names}
        recipe = replace(recipe, made={**recipe.made, **shapes})
        notes.append(tokens.note(experts))
    check_compatible(experts, dtype_given=dtype_given, apart=recipe.apart)
    check_copied(experts, apart=recipe.apart)
    return Comparison(recipe, tokens, tuple(notes))
