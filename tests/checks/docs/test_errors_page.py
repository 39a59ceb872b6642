"""The page of errors: a paragraph for each code and none besides, served where the problems point to."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.api.error_page import mount_error_page, page_of
from services.common import problem
from tests.support import ROOT
from tlm_client.console import NOT_REACHABLE, exit_code
from tlm_core import errors

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def codes_in_use() -> set[str]:
    """Codes of the tree, and those of HTTP itself that no class stands for."""
    tree = {code for code, cls in errors.error_classes().items() if cls.__module__ == errors.__name__}
    return tree | set(problem._HTTP_CODES.values())


def paragraphs(page: str) -> dict[str, str]:
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    return {heading: body.strip() for heading, _, body in (section.partition("\n") for section in sections)}


def test_each_code_has_its_paragraph_and_each_paragraph_its_code() -> None:
    assert set(paragraphs(PAGE)) == codes_in_use()


def test_a_paragraph_says_enough_to_act_on() -> None:
    for code, body in paragraphs(PAGE).items():
        assert body.count(".") >= 2 and len(body) > 100, code


def test_page_names_the_codes_with_exit_code_3() -> None:
    assert "(`unavailable`, codes that end with it, and `store_full`)" in " ".join(PAGE.split())
    for code, cls in errors.error_classes().items():
        named = code.endswith("unavailable") or code == "store_full"
        assert named is (exit_code(cls.__new__(cls)) == NOT_REACHABLE), code


class Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name == "id" and value}


def test_the_type_of_every_problem_leads_to_its_paragraph() -> None:
    app = FastAPI()
    mount_error_page(app)
    client = TestClient(app)
    for code in codes_in_use():
        path, _, anchor = problem.problem_body(500, code, "x")["type"].partition("#")
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        ids = Ids()
        ids.feed(answer.text)
        assert anchor in ids.found


def test_what_looks_like_markup_in_the_page_is_shown_and_not_run() -> None:
    assert "<p>a &lt;b&gt; <code>x&amp;y</code></p>" in page_of("# T\na <b> `x&y`")
