"""docs/errors.md has one section for each error code, at the URL in the `type` of a problem."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.api.routes.service import render_errors, router
from services.common import problem
from tests.support import ROOT
from tlm_client.console import NOT_REACHABLE, exit_code
from tlm_core import errors

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


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
    assert "(`unavailable`, codes that end with it, and `store_full`)" in " ".join(PAGE.split())
    for code, cls in errors.error_classes().items():
        named = code.endswith("unavailable") or code == "store_full"
        assert named is (exit_code(cls.__new__(cls)) == NOT_REACHABLE), code


class Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attrs if name == "id" and value}


def test_problem_type_links_to_its_section() -> None:
    app = FastAPI()
    app.include_router(router)
    client = TestClient(app)
    for code in codes_in_use():
        path, _, anchor = problem.problem_body(500, code, "x")["type"].partition("#")
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        parser = Ids()
        parser.feed(answer.text)
        assert anchor in parser.ids


def test_markup_in_the_page_is_escaped() -> None:
    assert "<p>a &lt;b&gt; <code>x&amp;y</code></p>" in render_errors("# T\na <b> `x&y`")
