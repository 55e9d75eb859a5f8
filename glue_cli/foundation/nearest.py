"""The known names that are most like a wrong one, for error messages. Needs no torch."""

import difflib
from collections.abc import Collection


def did_you_mean(name: str, known: Collection[str], *, ending: str = "", most: int = 1) -> str:
    """Return `did you mean 'x'?` if a known name is similar, otherwise nothing.

    Args:
        ending: what to write behind each name.
        most: how many names to offer.
    """
    near = [f"'{other}{ending}'" for other in difflib.get_close_matches(name, list(known), n=most)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def nearest(name: str, known: Collection[str]) -> str:
    """Return `did you mean 'x'?` if a known name is similar, otherwise the list of known names."""
    return did_you_mean(name, known) or f"known: {', '.join(sorted(known))}"
