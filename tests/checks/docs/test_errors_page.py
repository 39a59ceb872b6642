"""The served documentation. docs/errors.md has one section for each error code, at the URL in a problem's `type`."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.api.routes import documentation as routes
from services.api.routes.documentation import render, router
from services.common import problem
from tests.support import ROOT
from tlm_client.console import NOT_REACHABLE, exit_code
from tlm_core import errors

DOCS = ROOT / "docs"
PAGE = (DOCS / "errors.md").read_text(encoding="utf-8")


def codes_in_use() -> set[str]:
    """Return the codes of all error classes, and the HTTP codes without a class."""
    tree = {code for code, cls in errors.error_classes().items() if cls.__module__ == errors.__name__}
    return tree | set(problem._HTTP_CODES.values())


def sections(page: str) -> dict[str, str]:
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    return {heading: body.strip() for heading, _, body in (section.partition("\n") for section in sections)}


def test_page_has_one_section_for_each_code() -> None:
    assert set(sections(PAGE)) == codes_in_use()


def test_sections_have_at_least_two_sentences() -> None:
    for code, body in sections(PAGE).items():
        assert body.count(".") >= 2 and len(body) > 100, code


def test_page_names_the_codes_with_exit_code_3() -> None:
    assert "`unavailable`, codes that end with `_unavailable`, and `store_full`" in PAGE
    for code, cls in errors.error_classes().items():
        named = code.endswith("unavailable") or code == "store_full"
        assert named is (exit_code(cls.__new__(cls)) == NOT_REACHABLE), code


class Page(HTMLParser):
    """The ids of a page, and what it links to or shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attrs if name == "id" and value}
        self.links += [value for name, value in attrs if name in ("href", "src") and value]


def test_problem_type_links_to_its_section() -> None:
    client = documentation()
    for code in codes_in_use():
        path, _, anchor = problem.problem_body(500, code, "x").type.partition("#")
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert anchor in Page(answer.text).ids


def documentation() -> TestClient:
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


def test_documentation_is_served_from_a_linked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.setattr(routes, "_FOLDERS", (tmp_path / "docs",))
    assert documentation().get("/docs/serving").status_code == 200


def test_links_between_served_pages_lead_somewhere() -> None:
    client = documentation()
    texts: dict[str, Page] = {}
    unread = ["/docs/quickstart"]
    missing = []
    while unread:
        path = unread.pop()
        answer = client.get(path)
        if answer.status_code != 200:
            missing.append(path)
        texts[path] = Page(answer.text if answer.headers["content-type"].startswith("text/html") else "")
        for link in texts[path].links:
            target = urljoin(path, link).partition("#")[0]
            if target.startswith("/docs/") and target not in texts and target not in unread:
                unread.append(target)
    assert missing == [] and {"/docs/data", "/docs/contributing/fencing.md"} <= texts.keys()
    anchors = {urljoin(path, link) for path, page in texts.items() for link in page.links if "#" in link}
    assert [link for link in anchors if link.startswith("/") and link.partition("#")[2] not in texts[
        link.partition("#")[0]].ids] == []  # fmt: skip


def test_each_page_links_to_all_pages_by_their_headings() -> None:
    text = documentation().get("/docs/serving").text
    assert '<a href="/docs/serving" aria-current="page">Serving a model</a>' in text
    assert '<a href="/docs/selection">Selection</a>' in text and text.count("aria-current") == 1
    links = Page(text).links
    assert [name for page in sorted(DOCS.glob("*.md")) if (name := f"/docs/{page.stem}") not in links] == []
    assert links.index("/docs/tutorial") < links.index("/docs/api") < links.index("/docs/results")


def test_only_files_of_the_documentation_are_served() -> None:
    client = documentation()
    for path in (
        "..%2fREADME",
        "../README.md",
        "%2e%2e/pyproject.toml",
        "nothing",
        "plots/../../README",
        "errors.md.md",
        "%00",
        "a%00.png",
        "a" * 300,
        "a" * 300 + ".png",
    ):
        assert client.get(f"/docs/{path}").status_code == 404, path


def test_browser_gets_a_page_for_a_missing_page() -> None:
    client = documentation()
    shown = client.get("/docs/<nope>", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (shown.status_code, shown.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "/docs/tutorial" in Page(shown.text).links and "aria-current" not in shown.text
    assert client.get("/docs/nope").json()["detail"].endswith("no page 'nope'. /docs/tutorial links to all pages.")


def test_markup_in_the_page_is_escaped() -> None:
    assert "<p>a &lt;b&gt; <code>x&amp;y</code></p>" in render("# T\na <b> `x&y`")
