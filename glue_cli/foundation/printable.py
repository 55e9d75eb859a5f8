"""Make text from files, such as a tensor's name, safe to print: shorten it and escape control characters."""

import re

_SHOWN = 200  # the most characters of one thing, such as a name
_LINE = 5_000  # the most characters of a whole line: a path can have 4,096
# Characters that move the cursor, change colours, ring the bell or reverse the writing direction, and lone surrogates.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(value: object, limit: int = _SHOWN) -> str:
    """Return the text of a value from a file, for a message; a long text is shortened in the middle.

    Args:
        limit: the most characters that are kept.
    """
    text = str(value)
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}[... {len(text) - limit:,} characters ...]{text[-tail:]}"


def printable(line: str) -> str:
    """Return a line that is safe to print on a terminal: shortened, and with escapes such as `\\x1b` as text."""
    return _UNFIT.sub(lambda match: _escape(match[0]), shown(line, _LINE))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
