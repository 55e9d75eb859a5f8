"""Text that strangers wrote, such as a tensor's name, made fit to be shown: cut, and without control characters."""

import re

_SHOWN = 200  # characters of one thing, such as a name
_LINE = 5_000  # characters of a whole line: a path can have 4,096
# What moves the cursor, colours, rings, turns the direction of writing or is no character at all.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(found: object, limit: int = _SHOWN) -> str:
    """Return what a message says of something that a stranger wrote: its text, the middle left out where it is long.

    Args:
        limit: the most characters that are kept.
    """
    text = str(found)
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}[... {len(text) - limit:,} characters ...]{text[-tail:]}"


def printable(line: str) -> str:
    """Return a line as it may go to a terminal: what is no visible character is written as `\\x1b`, and it is cut."""
    return _UNFIT.sub(lambda found: _escape(found[0]), shown(line, _LINE))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
