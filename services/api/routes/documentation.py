"""The pages of docs/, which need no token. The `type` of every problem links to one of them."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from services.api.dashboard.web import PREFIX, read_assets
from tlm_core.errors import MissingDependency

router = APIRouter(include_in_schema=False)

# A wheel has the pages beside the package's modules, a checkout in docs/.
_FOLDERS = (Path(__file__).parents[1] / "docs", Path(__file__).parents[3] / "docs")
_IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}
# The first links of the navigation, in this order. The other pages follow.
_PAGES = (
    "tutorial", "quickstart", "data", "selection", "scale", "recipe", "report", "serving", "api", "jobs", "errors",
    "data-errors", "dashboard", "studies", "architecture", "deploy", "operations", "reliability", "results",
    "experiments", "comparison",
)  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/docs/{path:path}")
def documentation(path: str) -> Response:
    """Return a page of docs/, by its name with or without `.md`, or an image of a page."""
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
    """Return Markdown as HTML. The id of a heading is its text in lower case with hyphens, as on GitHub."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", re.sub(r"[^\w-]", "", text.content.lower().replace(" ", "-")))
    html = str(parser.renderer.render(tokens, parser.options, {}))
    return re.sub("<(pre|table)>", r'<\1 tabindex="0">', html)  # They scroll by keyboard too.


def _root() -> Path:
    root = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if root is None:
        first, second = _FOLDERS
        raise MissingDependency(
            f"The documentation is missing: neither {first} nor {second} exists. Reinstall the service."
        )
    return root


@cache
def _rendered(page: Path) -> str:
    assets = read_assets(PREFIX)
    styles = "".join(f'<link rel="stylesheet" href="{assets[name].url}">' for name in ("dashboard.css", "docs.css"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_title(page)} · TLM</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="{assets["icon.svg"].url}">{styles}</head>\n'
        f'<body>\n<header class="top"><a class="brand" href="{PREFIX}/jobs">TLM</a><nav aria-label="Main">'
        f'<a href="{PREFIX}/jobs">Dashboard</a><a href="/docs">API reference</a></nav></header>\n'
        f'<main class="docs"><nav aria-label="Documentation">{_links(page)}</nav>\n'
        f"<article>\n{render(page.read_text(encoding='utf-8'))}</article></main></body></html>\n"
    )


def _links(current: Path) -> str:
    """Return links to all pages. The link to the current page is marked."""
    pages = {page.stem: page for page in sorted(_root().glob("*.md"))}
    ordered = [pages[name] for name in dict.fromkeys((*_PAGES, *pages))]
    marks = {current: ' aria-current="page"'}
    return "".join(f'<a href="/docs/{page.stem}"{marks.get(page, "")}>{_title(page)}</a>' for page in ordered)


def _title(page: Path) -> str:
    """Return the heading of a page up to a colon."""
    with page.open(encoding="utf-8") as lines:
        return escape(next(lines).removeprefix("# ").partition(":")[0].strip())
