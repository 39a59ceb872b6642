"""The dashboard over HTTP: sign-in, security of pages, and escaping of hostile texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode, urljoin

import pytest

from services.api.dashboard.job_form import CommonFields
from services.api.dashboard.web import STATIC, integrity_of, vendored
from tests.contract.dashboard_pages import Tags, pages_of, signed_in, visitor
from tests.contract.filled_dashboard import HOSTILE, Contents
from tests.contract.gateway import TOKEN, Gateway
from tlm_core.jobs.states import State

T = "default"


def test_pages_without_a_session_redirect_to_sign_in(gateway: Gateway) -> None:
    browser = visitor(gateway)
    for path in (
        "/ui/jobs",
        "/ui/jobs/x",
        "/ui/jobs/x/points?stage=joint",
        "/ui/jobs/x/files/model.onnx",
        "/ui/submit",
    ):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/ui/sign-in"), path
    assert browser.get("/ui/jobs/live", headers={"HX-Request": "true"}).headers["hx-redirect"] == "/ui/sign-in"
    assert browser.get("/").headers["location"] == "/ui/jobs"
    assert browser.get("/docs").headers["location"] == "/ui/reference"
    assert browser.get("/redoc").status_code == 404
    reference = browser.get("/ui/reference")
    assert reference.status_code == 200
    assert "dashboard.css" in reference.text and '<header class="top">' in reference.text, "Its links have a style."


def test_sign_in_sets_a_cookie_hidden_from_scripts(gateway: Gateway) -> None:
    browser = visitor(gateway)
    answer = browser.post("/ui/sign-in", data={"token": f" {TOKEN} ", "next": "/ui/datasets"})
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/ui/datasets"
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/ui", "Max-Age="))
    assert TOKEN not in cookie
    assert browser.get("/ui/datasets").status_code == 200
    assert browser.post("/ui/sign-out").status_code == 303
    assert browser.get("/ui/datasets").status_code == 303


def test_wrong_token_is_refused(gateway: Gateway) -> None:
    browser = visitor(gateway)
    answer = browser.post("/ui/sign-in", data={"token": "tlm_other"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    assert "Invalid API token" in answer.text


def test_form_in_an_unusual_encoding_is_no_internal_error(gateway: Gateway) -> None:
    def post(path: str, name: str) -> int:
        content = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n\\ud800\r\n--b--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=b; charset=unicode_escape"}
        return browser.post(path, content=content, headers=headers).status_code

    browser = signed_in(gateway)
    assert post("/ui/sign-in", "token") == 401
    assert post("/ui/submit", "learning_curve.sizes") == 422


@pytest.mark.parametrize("value", ["", "x", "99999999999.00", "99999999999." + "a" * 64, "é.é"])
def test_forged_session_is_refused(gateway: Gateway, value: str) -> None:
    answer = visitor(gateway).get("/ui/jobs", headers={"Cookie": f"tlm_session={value}".encode()})
    assert answer.status_code == 303


@pytest.mark.parametrize("next", ["https://evil.example/", "//evil.example", "/ui/\\evil", "/ui//evil", "javascript:x"])
def test_sign_in_redirects_only_to_the_dashboard(gateway: Gateway, next: str) -> None:
    answer = visitor(gateway).post("/ui/sign-in", data={"token": TOKEN, "next": next})
    assert answer.headers["location"] == "/ui/jobs"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_write_from_another_origin_is_refused(filled: tuple[Gateway, Contents], headers: dict[str, str]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    for path in (f"/ui/jobs/{contents.jobs['running']}/do/cancel", "/ui/submit", "/ui/datasets", "/ui/sign-out"):
        answer = browser.post(path, headers=headers)
        assert (answer.status_code, "Sign out" in answer.text) == (403, False), path
    assert gateway.parts.jobs.get(T, contents.jobs["running"]).state is State.RUNNING


def test_content_policy_forbids_inline_and_foreign_content(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    for path in [*pages_of(contents), "/ui/sign-in", "/ui/nowhere"]:
        answer = browser.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, path
        assert answer.headers["cache-control"] == "no-store"
        for tag, given in Tags(answer.text).tags:
            assert tag != "style" and "style" not in given, (path, tag, given)
            assert not any(name.startswith("on") for name in given), (path, tag, given)
            for name in ("src", "href", "action", "hx-get", "hx-post"):
                assert (given.get(name) or "/")[0] in "/#?", (path, tag, given)
            if tag in ("script", "link") and given.get("rel") not in ("icon", "preload"):
                assert (given["integrity"] or "").startswith("sha384-"), (path, given)


def test_unknown_page_has_one_heading_and_links(gateway: Gateway) -> None:
    answer = signed_in(gateway).get("/ui/nowhere")
    main = answer.text.partition("<main")[2]
    assert answer.status_code == 404 and main.count("Not found") == 1
    assert "There is no page at /ui/nowhere." in main and 'href="/ui/datasets"' in main


def test_every_page_refuses_unknown_query_parameters(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    for path in [*pages_of(contents), "/ui/sign-in", "/ui/reference"]:
        answer = browser.get(f"{path}{'&' if '?' in path else '?'}maximum=5")
        assert (answer.status_code, "<h1>Invalid input" in answer.text) == (422, True), path
        assert "/maximum: is not a known parameter." in answer.text, path
    assert "Valid parameters: after, q, sort, state." in browser.get("/ui/jobs?maximum=5").text


def queries_of(page: str, path: str) -> Iterator[str]:
    """Yield the addresses with a query to which a page leads: links, requests of scripts, and fields of forms."""
    form = None
    for tag, given in Tags(page).tags:
        links = (given.get(name) or "" for name in ("href", "hx-get", "data-points"))
        yield from (urljoin(path, link) for link in links if "?" in link)
        if tag == "form":
            form = (given["action"] or "").partition("#")[0] if given.get("method") == "get" else None
        elif form and tag in ("input", "select") and (name := given.get("name")):
            yield f"{form}?{urlencode({name: given.get('value') or ''})}"


def test_own_links_and_forms_have_known_query_parameters(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    paths = [*pages_of(contents), "/ui/jobs?state=failed&q=tickets&sort=score"]
    queries = {query for path in paths for query in queries_of(browser.get(path).text, path)}
    assert {"q", "id", "stage", "seed", "was", "after"} <= {
        name for query in queries for name in re.findall(r"[?&](\w+)=", query)
    }
    assert {browser.get(query).status_code for query in queries} <= {200, 204}


def test_linked_files_match_their_integrity_hashes(gateway: Gateway) -> None:
    browser = visitor(gateway)
    linked = [given for tag, given in Tags(browser.get("/ui/sign-in").text).tags if tag in ("script", "link")]
    assert len(linked) >= 4
    for given in linked:
        answer = browser.get(given.get("src") or given.get("href") or "")
        assert (answer.status_code, "immutable" in answer.headers["cache-control"]) == (200, True)
    for entry in vendored():
        assert integrity_of(STATIC / "vendor" / entry["file"]) == entry["integrity"], entry["file"]
    listed = {entry["file"] for entry in vendored()}
    assert listed == {path.name for path in (STATIC / "vendor").iterdir()} - {"vendor.json", "LICENSES.txt"}


def test_only_files_of_this_release_are_cached_forever(gateway: Gateway) -> None:
    browser = visitor(gateway)
    url = next(given["href"] or "" for _, given in Tags(browser.get("/ui/sign-in").text).tags if "href" in given)
    path, _, tag = url.partition("?v=")
    assert "immutable" in browser.get(url).headers["cache-control"]
    others = [path, f"{path}?v={tag[::-1]}", f"/ui/static/none.css?v={tag}"]
    assert {browser.get(other).headers["cache-control"] for other in others} == {"no-store"}


def test_first_page_is_at_most_200_kilobytes(filled: tuple[Gateway, Contents]) -> None:
    browser = signed_in(filled[0])
    answer = browser.get("/ui/jobs")
    files = [
        given.get("src") or given.get("href") for tag, given in Tags(answer.text).tags if tag in ("script", "link")
    ]
    assert len(answer.content) + sum(len(browser.get(name or "").content) for name in files) <= 200_000


def test_hostile_text_is_escaped(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    seen = 0
    for path in pages_of(contents):
        answer = browser.get(path)
        assert answer.status_code == 200, (path, answer.text[:500])
        read = Tags(answer.text)
        assert not any(tag == "img" for tag, _ in read.tags), path
        assert all(given.get("src") for tag, given in read.tags if tag == "script"), path
        seen += HOSTILE in read.words
    assert seen >= 5, "Results, selection, dataset, log and facts of the job show it."
    for path, data in (
        (f"/ui/jobs/{contents.jobs['hostile']}/predict", {"texts": HOSTILE}),
        ("/ui/submit", dict.fromkeys([*CommonFields.model_fields, "prune.job", "share_tickets.tickets"], HOSTILE)),
    ):
        assert not Tags(browser.post(path, data=data).text).has("img"), path
    for path in (f"/ui/jobs/{HOSTILE}", f"/ui/corpora/manuals?q={HOSTILE}", f"/ui/jobs/{contents.jobs['alone']}/do/x"):
        assert not Tags(browser.get(path).text).has("img"), path


def test_fields_have_labels_and_pages_one_heading(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    for path in pages_of(contents):
        text = browser.get(path).text
        read = Tags(text)
        named = {given.get("for") for tag, given in read.tags if tag == "label"}
        for tag, given in read.tags:
            if tag in ("input", "select", "textarea") and given.get("type") not in ("hidden", "checkbox", "radio"):
                assert given.get("id") in named, (path, given)
        assert sum(tag == "h1" for tag, _ in read.tags) == 1, path
        ids = [given["id"] for _, given in read.tags if "id" in given]
        assert len(ids) == len(set(ids)), path


def test_errors_are_pages_or_fragments(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    whole = browser.get("/ui/jobs/nope")
    assert (whole.status_code, "Not found" in whole.text, "<html" in whole.text) == (404, True, True)
    part = browser.get("/ui/jobs/nope/live", headers={"HX-Request": "true"})
    assert (part.status_code, "Not found" in part.text, "<html" in part.text) == (404, True, False)
    assert browser.get("/ui/jobs?state=odd").status_code == 422
