"""Where the blends of tests go."""

from glue_cli.blend.recipe import PLAIN
from glue_cli.checkpoints.destination import plan_destination


def destination_of(output, experts, recipe=PLAIN, dtype=None, **options):
    """Plan the destination of a blend from its experts, as `glue mix` does."""
    return plan_destination(output, recipe.describe(experts, dtype), model_folder=experts[0].folder, **options)
