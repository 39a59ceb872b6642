"""The pages of docs/, which need no token. The `type` of every problem links to the page about errors."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from markupsafe import Markup
from starlette.exceptions import HTTPException

from services.api.dashboard.web import build_environment
from tlm_core.errors import MissingDependency

router = APIRouter(include_in_schema=False)

# A wheel contains the pages in the package `services.api`. A checkout contains them in docs/.
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
def documentation(request: Request, path: str) -> Response:
    """Return a page of docs/, by its name with or without `.md`, or an image of a page."""
    if not path:
        return RedirectResponse("/docs")
    if file := _file(path):
        if file.suffix in _IMAGES:
            return FileResponse(file, media_type=_IMAGES[file.suffix], headers=_HEADERS)
        return HTMLResponse(_rendered(file), headers=_HEADERS)
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_missing(), 404, headers=_HEADERS)
    raise HTTPException(404, f"The documentation has no page '{path[:80]}'. /docs/{_PAGES[0]} links to all pages.")


def render(markdown: str) -> str:
    """Return Markdown as HTML. The id of a heading is its text in lower case with hyphens, as on GitHub."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", re.sub(r"[^\w-]", "", text.content.lower().replace(" ", "-")))
    html = str(parser.renderer.render(tokens, parser.options, {}))
    return re.sub("<(pre|table)>", r'<\1 tabindex="0">', html)  # Readers can scroll these elements by keyboard.


def _root() -> Path:
    root = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if root is None:
        first, second = _FOLDERS
        raise MissingDependency(
            f"The documentation is missing: neither {first} nor {second} exists. Reinstall the service."
        )
    return root.resolve()


def _file(path: str) -> Path | None:
    """Return the page or image of docs/ at `path`, or None."""
    root = _root()
    try:
        file = (root / path).resolve()
        if file.suffix not in _IMAGES:
            file = file.with_name(file.name.removesuffix(".md") + ".md")
        return file if file.is_relative_to(root) and file.is_file() else None
    except (OSError, ValueError):  # The path is too long, or contains a null character.
        return None


@cache
def _rendered(page: Path) -> str:
    return _with_navigation(_title(page), page.read_text(encoding="utf-8"), page)


@cache
def _missing() -> str:
    return _with_navigation(
        "Not found", "# Not found\nThe documentation has no page at this address. Select another page."
    )


def _with_navigation(title: str, markdown: str, current: Path | None = None) -> str:
    """Return the HTML of the page `markdown`, with links to all pages. current: the file of the page, if it has one."""
    pages = {each.stem: each for each in sorted(_root().glob("*.md"))}
    ordered = [pages[name] for name in dict.fromkeys((*_PAGES, *pages))]
    links = [(each.stem, _title(each), each == current) for each in ordered]
    template = build_environment().get_template("documentation.html")
    return template.render(title=title, links=links, article=Markup(render(markdown)))


def _title(page: Path) -> str:
    """Return the heading in the first line of a page, up to a colon."""
    with page.open(encoding="utf-8") as lines:
        return next(lines).removeprefix("# ").partition(":")[0].strip()
