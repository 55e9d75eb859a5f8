"""The page as its reader's programs take it: well-formed, escaped, self-contained."""

import re
from html.parser import HTMLParser

import pytest

from glue_cli.report.document import Document, Picture, Section, Table
from glue_cli.report.render import as_html, as_markdown

NASTY = "<script>alert('x')</script> & \"a|b\" *c* _d_ `e`"
SVG = """<?xml version="1.0"?>
<svg width="576pt" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
<defs><path id="glyph" d="M 0 0"/><clipPath id="clip"><path d="M 1 1"/></clipPath></defs>
<use xlink:href="#glyph"/><g clip-path="url(#clip)"/></svg>
"""


@pytest.fixture
def document():
    table = Table(NASTY, ["start", NASTY], [["spsa", "51.0"], [NASTY, "−1.0"]], code=frozenset({1}))
    pictures = [Picture(name, NASTY, NASTY, SVG, b"") for name in ("row-loss", "row-cost")]
    inner = Section(NASTY, [NASTY], [table, *pictures])
    return Document(NASTY, [NASTY], [Section("row", [], sections=[inner])])


class Outline(HTMLParser):
    VOID = {"meta", "path", "use", "g"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.links = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def count(self, tag):
        return sum(found == tag for found, _ in self.tags)


def test_the_page_is_well_formed_and_nothing_from_files_is_markup(document):
    page = as_html(document)
    outline = Outline(page)
    assert outline.open == []
    assert outline.count("script") == 0 and "<script" not in page
    assert [outline.count(tag) for tag in ("h1", "table", "caption", "figure", "figcaption")] == [1, 1, 1, 2, 2]


def test_the_page_loads_nothing(document):
    page = as_html(document)
    assert all(link.startswith("#") for link in Outline(page).links)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_drawings_on_one_page_do_not_share_ids(document):
    outline = Outline(as_html(document))
    assert len(outline.ids) == len(set(outline.ids)) == 4
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    assert "url(#row-loss-clip)" in as_html(document)


def test_pictures_and_tables_are_told_to_those_who_do_not_see_them(document):
    drawings = [attributes for tag, attributes in Outline(as_html(document)).tags if tag == "svg"]
    assert [(d["role"], d["aria-label"]) for d in drawings] == [("img", NASTY)] * 2
    scopes = [attributes.get("scope") for tag, attributes in Outline(as_html(document)).tags if tag == "th"]
    assert scopes == ["col", "col", "row", "row"]


def test_markdown_tables_have_as_many_cells_in_every_row(document):
    text = as_markdown(document)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "<script" not in text and r"\*c\*" in text
    assert "(row-loss.png)" in text
