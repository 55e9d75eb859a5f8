"""A report as a sequence of blocks, independent of the format in which it is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        n_left: how many of the first columns are words, aligned to the left; the others are numbers.
        code: the numbers of the columns whose cells are set as code, because readers copy them.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_left: int = 1
    code: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A figure, in the files `name`.svg and `name`.png; `alt` describes it for readers who cannot see it."""

    name: str
    alt: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Section:
    title: str
    paragraphs: Sequence[str] = ()
    blocks: Sequence[Table | Picture] = ()
    sections: Sequence["Section"] = ()


@dataclass(frozen=True)
class Document:
    title: str
    paragraphs: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)
