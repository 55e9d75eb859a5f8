"""Figures as people read them. Needs no torch."""


def counted(n: int, noun: str) -> str:
    """Return a number of things, such as 1 step or 2,000 minibatches."""
    ending = "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}{'' if n == 1 else ending}"


def size(n_bytes: float) -> str:
    """Return a number of bytes such as 1.2 GB."""
    if round(n_bytes) < 1000:
        return f"{n_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if round(n_bytes, 1) < 1000:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} TB"
