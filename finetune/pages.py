"""Sections of text, tables and pictures -> Markdown and one HTML file that needs nothing else."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.cli import atomic_path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left }
th { border-bottom: 2px solid #888 } td.n, th.n { text-align: right; white-space: nowrap }
img { max-width: 100% } figure { margin: 1rem 0 } figcaption { color: #666; font-size: .9em }
p { color: #444 } em { color: #b00020 }
"""


@dataclass(frozen=True)
class Table:
    """Cells as text; *stars* emphasise."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: int
    """Columns from this one on are aligned right."""

    def markdown(self) -> list[str]:
        """Lines of a pipe table."""
        lines = [self.head, self._rule(), *self.rows]
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]

    def _rule(self) -> list[str]:
        return ["---:" if i >= self.numeric else "---" for i in range(len(self.head))]

    def html(self) -> str:
        """A `<table>`."""

        def line(cells: Sequence[str], tag: str) -> str:
            shown = (
                f"<{tag}{' class=n' if i >= self.numeric else ''}>{inline(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            )
            return f"<tr>{''.join(shown)}</tr>"

        body = "\n".join(line(row, "td") for row in self.rows)
        return f"<table>\n{line(self.head, 'th')}\n{body}\n</table>"


@dataclass(frozen=True)
class Section:
    """A title, a paragraph, tables, and (description, PNG file) pictures."""

    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, Path]] = field(default=())


def write(path: Path, title: str, sections: Sequence[Section]) -> None:
    """`path` as Markdown, and beside it the same as HTML with the pictures inside."""
    for target, text in (
        (path, to_markdown(title, sections)),
        (path.with_suffix(".html"), to_html(title, sections)),
    ):
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="utf-8")


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole page; pictures by file name."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        for table in section.tables:
            lines += [*table.markdown(), ""]
        for description, picture in section.pictures:
            lines += [f"![{description}]({picture.name})", ""]
    return "\n".join(lines)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The whole page; pictures as data."""
    parts = [f"<h1>{inline(title)}</h1>"]
    for section in sections:
        parts += [f"<h2>{inline(section.title)}</h2>", f"<p>{inline(section.text)}</p>"]
        parts += [table.html() for table in section.tables]
        for description, picture in section.pictures:
            data = base64.b64encode(picture.read_bytes()).decode()
            shown = f'<img alt="{inline(description)}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{shown}<figcaption>{inline(description)}</figcaption></figure>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{inline(title)}'
        f"</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def inline(text: str) -> str:
    """Escaped for HTML, with *stars* as emphasis."""
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", html.escape(text))
