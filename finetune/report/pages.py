"""Sections of text, tables and pictures -> Markdown and one HTML file that needs nothing else."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from shards.files import atomic_path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .2rem .55rem; font-size: .9em; border-bottom: 1px solid #ddd; text-align: left }
th { border-bottom: 2px solid #888 } td.n, th.n { text-align: right; white-space: nowrap }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start }
figure { margin: 1rem 0; max-width: 100% } img { max-width: 100% }
figcaption { color: #555; font-size: .85em; contain: inline-size }
p { color: #444; max-width: 50rem } em { color: #b00020 }
"""


COLUMN, ZOOM = 4, 1.4
"""Figures of less inches are drawn for a column of a paper; a screen is read from further away."""


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
            marked = (
                f"<{tag}{' class=n' if i >= self.numeric else ''}>{inline(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            )
            return f"<tr>{''.join(marked)}</tr>"

        body = "\n".join(line(row, "td") for row in self.rows)
        return f"<table>\n{line(self.head, 'th')}\n{body}\n</table>"


@dataclass(frozen=True)
class Picture:
    """A PNG file, what it shows for who cannot see it, and the line below it."""

    path: Path
    alt: str
    caption: str

    def html(self) -> str:
        """A `<figure>` with the picture inside, about as wide as its text is meant to be read."""
        content = self.path.read_bytes()
        with Image.open(self.path) as image:
            inches = image.width / image.info.get("dpi", (130, 130))[0]
        inches *= ZOOM if inches < COLUMN else 1
        data = base64.b64encode(content).decode()
        image_tag = (
            f'<img alt="{html.escape(self.alt)}" style="width: {inches:.2f}in" '
            f'src="data:image/png;base64,{data}">'
        )
        return f"<figure>{image_tag}<figcaption>{inline(self.caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Section:
    """A title, a paragraph, tables, and pictures."""

    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


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
        lines += [f"## {section.title}", ""] + ([section.text, ""] if section.text else [])
        for table in section.tables:
            lines += [*table.markdown(), ""]
        for picture in section.pictures:
            lines += [f"![{picture.alt}]({quote(picture.path.name)})", "", picture.caption, ""]
    return "\n".join(lines)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The whole page; pictures as data."""
    parts = [f"<h1>{inline(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{inline(section.title)}</h2>")
        parts += [f"<p>{inline(section.text)}</p>"] if section.text else []
        parts += [table.html() for table in section.tables]
        if section.pictures:
            pictures = "\n".join(picture.html() for picture in section.pictures)
            parts.append(f'<div class="figures">{pictures}</div>')
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{inline(title)}'
        f"</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def inline(text: str) -> str:
    """Escaped for HTML, with *stars* as emphasis."""
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", html.escape(text))
