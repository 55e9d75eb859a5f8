"""Write a document as one HTML page or as Markdown; all text from files is escaped."""

import html
import re
from collections.abc import Sequence

from glue_cli.report.document import Document, Picture, Section, Table

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fdfdfc; --quiet: #5c5c5c; --rule: #d9d9d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --paper: #161618; --quiet: #a3a3a0; --rule: #3a3a3d; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { font-size: 1.3rem; margin-top: 3rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin-top: 2rem; }
p { max-width: 44rem; }
figure { margin: 1.5rem 0; }
.card { background: #fff; border: 1px solid var(--rule); border-radius: 6px; padding: .75rem; max-width: 58rem;
  overflow-x: auto; }
.card svg { display: block; max-width: 100%; height: auto; }
@media (max-width: 45rem) { .card svg { max-width: none; } }
figcaption, caption { color: var(--quiet); font-size: .9rem; text-align: left; }
figcaption { margin-top: .5rem; max-width: 44rem; }
caption { padding-bottom: .4rem; }
.wide { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead .number { white-space: normal; }
code { font-size: .85em; overflow-wrap: anywhere; }
@media print {
  :root { --ink: #000; --paper: #fff; --quiet: #333; --rule: #bbb; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .wide, .card { overflow: visible; border: 0; padding: 0; }
  .card svg { max-width: 100%; max-height: 21cm; }
  table { font-size: 8pt; }
  tbody th { white-space: normal; }
  figure, tr { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
}
"""


def as_html(document: Document) -> str:
    """Return the document as one page that loads nothing: its figures are inline, and it has no script."""
    parts = [f"<h1>{html.escape(document.title)}</h1>", *_html_paragraphs(document.paragraphs)]
    for section in document.sections:
        parts += _html_section(section, 2)
    return _PAGE.format(title=html.escape(document.title), style=_STYLE, body="\n".join(parts))


def _html_paragraphs(paragraphs: Sequence[str]) -> list[str]:
    return [f"<p>{html.escape(text)}</p>" for text in paragraphs]


def _html_section(section: Section, level: int) -> list[str]:
    parts = [f"<section>\n<h{level}>{html.escape(section.title)}</h{level}>", *_html_paragraphs(section.paragraphs)]
    parts += [_html_table(block) if isinstance(block, Table) else _html_picture(block) for block in section.blocks]
    for inner in section.sections:
        parts += _html_section(inner, level + 1)
    return [*parts, "</section>"]


def _html_table(table: Table) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        inner = html.escape(text)
        inner = f"<code>{inner}</code>" if tag != 'th scope="col"' and column in table.code else inner
        kind = ' class="number"' if column >= table.n_left else ""
        return f"<{tag}{kind}>{inner}</{tag.split()[0]}>"

    head = "".join(cell('th scope="col"', i, text) for i, text in enumerate(table.columns))
    body = "\n".join(
        "<tr>" + "".join(cell("td" if i else 'th scope="row"', i, text) for i, text in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(table.caption)}"><table>{caption}\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _html_picture(picture: Picture) -> str:
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>"
    return f'<figure><div class="card">{_inline(picture)}</div>\n{caption}</figure>'


def _inline(picture: Picture) -> str:
    """Return a figure's SVG for use inside a page: with ids that no other figure has, and with its description."""
    svg = picture.svg[picture.svg.index("<svg") :].strip()
    prefix = html.escape(picture.name)
    svg = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(picture.alt)}"', 1)


def as_markdown(document: Document) -> str:
    """Return the document as Markdown that links to its figures' PNG files."""
    parts = [f"# {_md(document.title)}", *map(_md, document.paragraphs)]
    for section in document.sections:
        parts += _md_section(section, 2)
    return "\n\n".join(parts) + "\n"


def _md_section(section: Section, level: int) -> list[str]:
    parts = [f"{'#' * level} {_md(section.title)}", *map(_md, section.paragraphs)]
    for block in section.blocks:
        if isinstance(block, Table):
            parts += [f"{_md(block.caption)}:", _md_table(block)]
        else:
            parts += [f"![{_md(block.alt)}]({block.name}.png)", _md(block.caption)]
    for inner in section.sections:
        parts += _md_section(inner, level + 1)
    return parts


def _md_table(table: Table) -> str:
    lines = [
        [_md(column) for column in table.columns],
        ["---" if i < table.n_left else "---:" for i in range(len(table.columns))],
        *([_md_cell(table, i, text) for i, text in enumerate(row)] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md_cell(table: Table, column: int, text: str) -> str:
    is_code = column in table.code and "`" not in text and "|" not in text
    return f"`{text}`" if is_code else _md(text)


def _md(text: str) -> str:
    """Escape characters that Markdown, or HTML inside it, would read as markup."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ")
