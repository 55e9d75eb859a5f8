"""A mix of model folders: the modules in them besides the model itself, and the output's folder."""

from collections.abc import Sequence
from pathlib import Path

from glue_cli.blend.recipe import Recipe
from glue_cli.checkpoints.companions import look_into
from glue_cli.checkpoints.destination import Destination, is_folder_name, plan_destination
from glue_cli.checkpoints.header import Checkpoint, stem_of
from glue_cli.checkpoints.parts import Part, add_parts
from glue_cli.foundation.errors import SpecError
from glue_cli.plans.mix_records import OUTPUT_DTYPES, Writing


def with_parts(
    experts: Sequence[Checkpoint], output: Path
) -> tuple[tuple[Checkpoint, ...], tuple[Part, ...], tuple[str, ...]]:
    """Add to each expert the further modules in its folder, if the output is a folder too.

    Returns:
        the experts, their parts, and a note on parts that the output cannot hold.
    Raises:
        CheckpointError: as for `add_parts`.
    """
    if is_folder_name(output):
        return (*add_parts(experts, apart=[output]), ())
    names = [f"'{name}'" for name in look_into(folder).parts] if (folder := experts[0].folder) else []
    if not names:
        return tuple(experts), (), ()
    what = f"'{output}' is a file, and lacks the modules that {folder} has in {', '.join(names)}"
    return tuple(experts), (), (f"{what}; a folder would hold them: -o prior/",)


def check_groups(recipe: Recipe, experts: Sequence[Checkpoint], parts: Sequence[Part]) -> None:
    """Check that a search can find coefficients for every group; it runs the model without its parts.

    Raises:
        SpecError: a group has only tensors of parts.
    """
    prefixes = tuple(part.prefix for part in parts)
    own = {recipe.group_of.get(name, 0) for name in experts[0].entries if not name.startswith(prefixes)}
    empty = [group for number, group in enumerate(recipe.groups) if number not in own]
    if parts and empty:
        raise SpecError(
            "mix.groups: a search does not run the modules in subfolders, which are all of these groups",
            items=empty,
            hint="let the patterns name tensors of the model too",
        )


def plan_blend_destination(
    experts: Sequence[Checkpoint],
    parts: tuple[Part, ...],
    recipe: Recipe,
    keeper: Checkpoint,
    output: Path,
    writing: Writing,
) -> Destination:
    """Decide which files a blend of whole checkpoints is written to.

    Args:
        keeper: the expert whose configuration and tokenizer the blend gets.
    Raises:
        UsageError, CheckpointError: as for `plan_destination`.
    """
    along = None
    if keeper.folder and is_folder_name(output):
        content = look_into(keeper.folder, apart=[output])
        along = (*content.companions, *content.others)
    return plan_destination(
        output,
        recipe.describe(experts, OUTPUT_DTYPES[writing.dtype] if writing.dtype else None),
        model_folder=keeper.folder,
        companions=along,
        parts=parts,
        max_shard_bytes=writing.max_shard_bytes,
        card=writing.card,
        stem=stem_of(keeper.files[0]),
    )
