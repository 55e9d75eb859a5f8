"""A report as a sequence of blocks, whatever it is written in later."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Cells of text: columns up to `n_left` are words, the others numbers; those in `code` are to be copied."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_left: int = 1
    code: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A figure, in the files `name`.svg and `name`.png; `alt` is the text for those who cannot see it."""

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
