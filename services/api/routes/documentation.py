"""The pages of docs/, which need no token. The `type` of every problem links to one of them."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from tlm_core.errors import MissingDependency

router = APIRouter(include_in_schema=False)

# A wheel has the pages beside the package's modules, a checkout in docs/.
_FOLDERS = (Path(__file__).parents[1] / "docs", Path(__file__).parents[3] / "docs")
_IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_STYLE = (
    ":root{color-scheme:light dark}body{max-width:52rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere;"
    "font:1rem/1.5 system-ui,sans-serif}:target{background:Mark;color:MarkText}code{font-family:monospace}"
    "pre{overflow-x:auto;padding:.6rem .8rem;border:1px solid GrayText}img{max-width:100%}nav a{margin-right:1rem}"
    "table{display:block;overflow-x:auto;border-collapse:collapse}th,td{padding:.3rem .6rem;text-align:left;"
    "vertical-align:top;border:1px solid GrayText;overflow-wrap:normal}"
)


@router.get("/docs/{path:path}")
def documentation(path: str) -> Response:
    """A page of docs/, by its name with or without `.md`, or an image of a page."""
    if not path:
        return RedirectResponse("/docs")
    root = _root()
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        raise HTTPException(404)
    if file.suffix in _IMAGES and file.is_file():
        return FileResponse(file, media_type=_IMAGES[file.suffix], headers=_HEADERS)
    page = file.with_name(file.name.removesuffix(".md") + ".md")
    if not page.is_file():
        raise HTTPException(404)
    return HTMLResponse(_rendered(page), headers=_HEADERS)


def render(markdown: str) -> str:
    """Markdown as HTML. The id of a heading is its text in lower case with hyphens, as on GitHub."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", re.sub(r"[^\w-]", "", text.content.lower().replace(" ", "-")))
    return str(parser.renderer.render(tokens, parser.options, {}))


def _root() -> Path:
    root = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if root is None:
        raise MissingDependency(f"The documentation {_FOLDERS[0]} is missing. Reinstall the service.")
    return root


@cache
def _rendered(page: Path) -> str:
    names = sorted(other.stem for other in _root().glob("*.md"))
    links = " ".join(f'<a href="/docs/{name}">{name}</a>' for name in names)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{page.stem} · TLM</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="/ui/static/icon.svg"><style>{_STYLE}</style></head>\n'
        f'<body>\n<nav aria-label="Documentation"><a href="/docs">API reference</a> {links}</nav>\n'
        f"<main>\n{render(page.read_text(encoding='utf-8'))}</main></body></html>\n"
    )
