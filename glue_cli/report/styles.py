"""A method's name, position and line style, the same in every table and figure."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import cycle

# Okabe and Ito's colours, which can be told apart with any colour vision, without their yellow, which is too pale on
# white. Variants of a method are darker or paler, so that they differ in greyscale print too.
BLACK, DARK_GREY, GREY = "#000000", "#4D4D4D", "#7F7F7F"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
DARK_VERMILLION, PALE_VERMILLION = "#7A3300", "#F2A36B"


@dataclass(frozen=True)
class Style:
    """A method's name for readers, and its line style in matplotlib's terms; a `hollow` marker is white inside."""

    name: str
    color: str
    marker: str
    dash: str = "-"
    hollow: bool = False


_KNOWN = {
    "uniform": Style("uniform", SKY, "v"),
    "data-size": Style("data size", GREEN, "^"),
    "proxy": Style("proxy accuracy", PURPLE, "D"),
    "fullgrad": Style("full gradient", BLUE, "s"),
    "spsa": Style("GLUE (SPSA)", VERMILLION, "o"),
    "spsa-n2": Style("GLUE, 2 directions", DARK_VERMILLION, "X", "--"),
    "spsa-n4": Style("GLUE, 4 directions", PALE_VERMILLION, "P", "-."),
    "spsa-default": Style("GLUE, default preset", ORANGE, "o", hollow=True),
    "cmaes": Style("CMA-ES", DARK_GREY, "<", "-."),
    "greedy": Style("greedy soup", GREY, ">", "--"),
    "scratch": Style("from scratch", BLACK, "x", ":"),
}
# The names of `spsa` as in the paper, and with the default preset, which takes Gauss-Newton steps where possible.
_PAPERS_SEARCH, _DEFAULT_SEARCH = _KNOWN["spsa"].name, "GLUE, default search"
_REFRESHED = "-refreshed"
_MARKERS, _DASHES = ("*", "p", "h", "<", ">", "d"), (":", "-.", "--")


def base_of(label: str) -> str:
    """Return the known label that this label equals or begins with, such as `spsa` for `spsa-n8`; else the label."""
    bases = [known for known in _KNOWN if label == known or label.startswith(f"{known}-")]
    return max(bases, key=len, default=label)


def styles_of(labels: Collection[str], default: Collection[str] = ()) -> dict[str, Style]:
    """Return each label's style, in the order in which the report lists them.

    A known label followed by `-refreshed` gets the known style, hollow and dashed. Any other label gets the name and
    colour of the known label that it begins with, or grey, and its own line style.

    Args:
        default: the labels whose alpha comes from the default preset's search.
    """
    order = {label: i for i, label in enumerate(_KNOWN)}
    lines = cycle(zip(_MARKERS, cycle(_DASHES), strict=False))
    styles = {}
    for label in sorted(labels, key=lambda label: (order.get(base_of(label), len(order)), label)):
        if label in _KNOWN:
            styles[label] = _KNOWN[label]
        elif (known := _KNOWN.get(label.removesuffix(_REFRESHED))) is not None:
            styles[label] = replace(known, name=f"{known.name}, BatchNorm refreshed", dash="--", hollow=True)
        else:
            base = _KNOWN.get(base_of(label))
            name = f"{base.name}, {label.removeprefix(base_of(label))[1:].replace('-', ' ')}" if base else label
            styles[label] = Style(name, base.color if base else GREY, *next(lines), hollow=True)
    for label in styles.keys() & set(default):
        styles[label] = replace(styles[label], name=styles[label].name.replace(_PAPERS_SEARCH, _DEFAULT_SEARCH))
    return styles
