"""The frame of the report: one HTML file that loads nothing, light and dark, screen and paper."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from PIL import Image

from sslops.training.report.style import STYLE

__all__ = [
    "cell_table",
    "definitions",
    "figure",
    "legend",
    "missing",
    "page",
    "picture",
    "section",
    "titled",
]

ROOM, WIDE_ROOM = 460, 970  # pixels inside a figure, and inside a wide one, on a large screen
LARGEST_ZOOM = 4
WEBP_QUALITY = 90
WEBP_SIDE = 16_383  # pixels, the format's limit

# The policy makes "self-contained" a fact: a browser refuses to fetch anything.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
"""


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return (
        f"{_HEAD}<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(body)}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *content: str, lead: str = "") -> str:
    """A headed part of the page."""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{''.join(content)}</section>"


def missing(sentence: str, *, warn: bool = False) -> str:
    """What stands in place of a part that a run does not have."""
    return f'<p class="missing{" warn" if warn else ""}">{escape(sentence)}</p>'


def titled(name: str) -> str:
    """A file's name as a title: own capitals stay."""
    return name[:1].upper() + name[1:].replace("-", " ")


def figure(title: str, content: str, caption: str = "", *, wide: bool = False) -> str:
    """A titled card with a caption."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    style = ' class="wide"' if wide else ""
    return f"<figure{style}><h3>{escape(title)}</h3>{content}{below}</figure>"


def picture(png: bytes, alt: str, *, wide: bool = False) -> str:
    """A picture inside the page, enlarged by the largest whole factor that it has room for.

    It is put in as WebP where that is less than half: photographs are a quarter, drawings not.
    """
    try:
        with Image.open(io.BytesIO(png)) as image:
            width, height = image.size
            buffer = io.BytesIO()
            image.load()
            if max(image.size) <= WEBP_SIDE:
                image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=6)
    except (OSError, SyntaxError):
        return missing("This picture's file is cut off.")
    webp = buffer.getvalue()
    kind, content = ("webp", webp) if webp and 2 * len(webp) < len(png) else ("png", png)
    zoom = min(LARGEST_ZOOM, max(1, (WIDE_ROOM if wide else ROOM) // width))
    data = base64.b64encode(content).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" width="{zoom * width}" '
        f'height="{zoom * height}" alt="{escape(alt)}">'
    )


def legend(entries: Mapping[str, str], *, dotted: bool = False) -> str:
    """Names with the colour of their style: name -> style."""
    style = "legend dotted" if dotted else "legend"
    items = "".join(
        f'<span><i class="fill {css}"></i>{escape(name)}</span>' for name, css in entries.items()
    )
    return f'<div class="{style}">{items}</div>'


def definitions(entries: Mapping[str, str], *, long: bool = False) -> str:
    """Names and values in columns; `long` gives each a line of its own."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in entries.items()
    )
    return f"<figure><dl{' class=long' if long else ''}>{items}</dl></figure>"


def cell_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already and whose first row stands out."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{cell}</td>" for cell in row[1:])
        lines.append(f"<tr{' class=first' if i == 0 else ''}><th>{row[0]}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
