"""The page to which the `type` of every problem points: docs/errors.md, served by the gateway that answered."""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from services.common.problem import ERROR_PAGE
from tlm_core.errors import MissingDependency

# In a wheel the page lies beside this module; in a checkout in docs/.
_PLACES = (Path(__file__).parent / "errors.md", Path(__file__).parents[2] / "docs" / "errors.md")
_INLINE = ((r"`([^`]+)`", r"<code>\1</code>"), (r"\[([^\]]+)\]\([^)]+\)", r"\1"))
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = (
    ":root{color-scheme:light dark}body{max-width:44rem;margin:2rem auto;padding:0 1rem;"
    "font:1rem/1.5 system-ui,sans-serif}:target{background:Mark;color:MarkText}code{font-family:monospace}"
)


def mount_error_page(app: FastAPI) -> None:
    """Serve the page; it says nothing of this gateway, so nobody has to sign in."""
    app.add_api_route(ERROR_PAGE, _page, include_in_schema=False)


def _page() -> HTMLResponse:
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(_rendered(), headers=headers)


@cache
def _rendered() -> str:
    found = next((place for place in _PLACES if place.is_file()), None)
    if found is None:
        raise MissingDependency(f"the page of errors is not where it was installed ({_PLACES[0]}); install again")
    return page_of(found.read_text(encoding="utf-8"))


def page_of(text: str) -> str:
    """HTML of a page that has headings, paragraphs, `code` and links, and nothing else of Markdown.

    The id of a heading is its text, so that `#not_found` leads to the paragraph of that code.
    """
    blocks = "\n".join(_block(block) for block in re.split(r"\n\s*\n", text.strip()) for block in _parted(block))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Errors</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>\n{blocks}\n</body></html>\n"
    )


def _parted(block: str) -> list[str]:
    """A heading that a paragraph follows without a blank line is a block of its own."""
    first, _, rest = block.partition("\n")
    return [first, rest] if first.startswith("#") and rest else [block]


def _block(block: str) -> str:
    level = len(block) - len(block.lstrip("#"))
    inner = html.escape(block[level:].strip())
    if level:
        return f'<h{level} id="{inner}">{inner}</h{level}>'
    for pattern, tag in _INLINE:
        inner = re.sub(pattern, tag, inner)
    return f"<p>{inner}</p>"
