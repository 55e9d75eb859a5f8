"""Numbers and names as text for people. Needs no torch."""

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import PurePath


def counted(n: int, noun: str) -> str:
    """Return a number of things as text, such as 1 step or 2,000 minibatches."""
    ending = "es" if noun.endswith(("ch", "ss")) else "s"
    return f"{n:,} {noun}{'' if n == 1 else ending}"


def listed(words: Sequence[object], most: int = 3) -> str:
    """Return things as a list in a sentence, such as a, b, c and 1,997 more; no more of them than `most`."""
    more = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(map(str, words[:most])) + more


def size(n_bytes: float) -> str:
    """Return a number of bytes as text, such as 1.2 GB."""
    if round(n_bytes) < 1000:
        return f"{n_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if round(n_bytes, 1) < 1000:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} TB"


def mebibytes(n_bytes: int) -> str:
    """Return what to give to an option for at least so many bytes, such as 3MiB."""
    return f"{-(-n_bytes // (1 << 20))}MiB"


def duration(seconds: float) -> str:
    """Return a time as text, such as 0.8 s, 42 s, 3:05 or 1:02:03."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def brief(seconds: float) -> str:
    """Return a short time as text with two digits, such as 0.35 ms, 160 ms or 1.2 s."""
    text, unit = _two_digits(1000 * seconds), "ms"
    if float(text) >= 1000:
        text, unit = _two_digits(seconds), "s"
    return f"{text} {unit}"


def _two_digits(value: float) -> str:
    text = f"{Decimal(f'{value:.1e}'):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def name_of(checkpoint: str) -> str:
    """Return a checkpoint's name without suffixes; for a `model.safetensors`, the name of its folder."""
    path = PurePath(checkpoint.encode(errors="replace").decode())  # a file's name may not be valid text
    name = re.sub(r"\.safetensors(\.index\.json)?$", "", path.name)
    return path.parent.name if name == "model" and path.parent.name else name
