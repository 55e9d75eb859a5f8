"""What keeps experts from being blended, as values: a mix raises the first, and `glue check` lists all. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from glue_cli.foundation.errors import CheckpointError


@dataclass(frozen=True)
class Misfit:
    """Something in which experts do not fit each other, or cannot be blended at all.

    Attributes:
        about: what was compared, in a word or two for a table, such as "classes".
        message, items, hint: as in `GlueError`.
    """

    about: str
    message: str
    items: tuple[str, ...] = ()
    hint: str | None = None


def refuse(misfits: Iterable[Misfit]) -> None:
    """Raise the first misfit, if there is one.

    Raises:
        CheckpointError: with the misfit's message, items and hint.
    """
    for misfit in misfits:
        raise CheckpointError(misfit.message, items=misfit.items, hint=misfit.hint)
