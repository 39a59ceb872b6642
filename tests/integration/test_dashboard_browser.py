"""The dashboard in headless Chromium: live updates, keyboard, phone, and accessibility (axe)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.filled_dashboard import HOSTILE, Contents, report_progress
from tests.contract.gateway import TOKEN, Gateway
from tests.integration.browser import settle
from tlm_core.jobs.states import State

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
T = "default"
TABS = ("results", "labels", "selection", "model", "log")


def paths_of(contents: Contents) -> list[str]:
    """Return one address of each page."""
    succeeded, running = (f"/ui/jobs/{contents.jobs[name]}" for name in ("succeeded", "running"))
    tabs = [f"{succeeded}/{tab}" for tab in TABS]
    lists = [
        "/ui/jobs",
        "/ui/models",
        "/ui/datasets",
        "/ui/corpora",
        "/ui/corpora/manuals?q=parcel",
        "/ui/submit",
        "/ui/nowhere",
        "/ui/reference",
        "/docs/scale",
        "/docs/tutorial",
    ]
    both = f"/ui/compare?id={contents.jobs['succeeded']}&id={contents.jobs['alone']}"
    return [
        *lists,
        f"/ui/datasets/{contents.dataset}",
        succeeded,
        running,
        f"/ui/jobs/{contents.jobs['failed']}",
        *tabs,
        both,
    ]


def open_views(page: Any, address: str) -> Iterator[None]:
    """Open a page and yield for each view. The form for a new job has one view per kind."""
    page.goto(address)
    settle(page)
    page.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
    yield
    for number in range(1, page.locator("[name=kind]").count()):
        page.locator("[name=kind]").nth(number).check()
        yield


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_no_page_has_a_serious_accessibility_violation(
    page: Any, served: tuple[str, Gateway, Contents], scheme: str, width: int
) -> None:
    url, _, contents = served
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    axe = AXE.read_text(encoding="utf-8")
    violations = []
    every = paths_of(contents)
    # The dark scheme changes only colors, and a phone only the layout. These pages have all of them: the last one
    # compares two jobs.
    varied = [f"/ui/jobs/{contents.jobs['succeeded']}{tab}" for tab in ("", "/results", "/selection", "/model")]
    varied += ["/ui/jobs", "/ui/submit", f"/ui/datasets/{contents.dataset}", "/docs/tutorial", every[-1]]
    for path in ["/ui/sign-in", *every] if (scheme, width) == ("light", 1280) else varied:
        for _ in open_views(page, url + path):
            page.evaluate(axe)
            # Swagger UI is of a third party: it draws colors of low contrast, and buttons with links inside.
            result = page.evaluate("() => axe.run({exclude: '.swagger-ui'}, {resultTypes: ['violations']})")
            violations += [
                (path, violation["id"], violation["nodes"][0]["html"][:200])
                for violation in result["violations"]
                if violation["impact"] in ("serious", "critical")
            ]
    page.complaints = [complaint for complaint in page.complaints if "404" not in complaint]
    assert violations == []


def test_hostile_texts_never_run_and_no_foreign_url_is_requested(
    page: Any, served: tuple[str, Gateway, Contents]
) -> None:
    url, _, contents = served
    elsewhere: list[str] = []
    page.on("request", lambda request: request.url.startswith((url, "data:")) or elsewhere.append(request.url))
    hostile = f"/ui/jobs/{contents.jobs['hostile']}"
    of_job = [hostile, *(f"{hostile}/{tab}" for tab in TABS)]
    for path in [*paths_of(contents), f"/ui/datasets/{contents.hostile_dataset}", *of_job]:
        page.goto(url + path)
        settle(page)
        assert "owned" not in page.title(), path
        assert page.locator("img[src=x]").count() == 0, path
        assert path.startswith("/docs/") or page.locator("main img").count() == 0, path
    page.goto(f"{url}/ui/jobs/{contents.jobs['hostile']}/model")
    page.fill("#texts", HOSTILE)
    page.get_by_role("button", name="Classify").click()
    page.wait_for_selector(".answer")
    assert HOSTILE in page.inner_text("#answers")
    assert "owned" not in page.title()
    page.complaints = [complaint for complaint in page.complaints if "404" not in complaint]
    assert elsewhere == []


def test_api_reference_shows_operations_without_foreign_requests(
    page: Any, served: tuple[str, Gateway, Contents]
) -> None:
    url = served[0]
    elsewhere: list[str] = []
    page.on("request", lambda request: request.url.startswith((url, "data:")) or elsewhere.append(request.url))
    page.goto(f"{url}/docs")
    page.wait_for_selector("text=Submit a job")
    page.locator("#operations-jobs-submit_v1_jobs_post button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.wait_for_selector("textarea")
    assert elsewhere == []


def test_every_page_fits_a_phone(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": 360, "height": 740})
    hostile = [f"/ui/jobs/{contents.jobs['hostile']}/{tab}" for tab in TABS]  # long words
    for path in [*paths_of(contents), *hostile]:
        for _ in open_views(page, url + path):
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    page.complaints = [complaint for complaint in page.complaints if "404" not in complaint]


def test_dashboard_works_by_keyboard_alone(browser: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, gateway, contents = served
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(url)
    page.wait_for_selector("#token:focus")  # wait until the page is drawn
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#jobs")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to main content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "The focused link is visible."
    page.keyboard.press("Enter")
    wanted = f"/ui/jobs/{contents.jobs['paused']}"
    for _ in range(40):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "The focus is visible."
        if page.evaluate("document.activeElement.getAttribute('href')") == wanted:
            break
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{wanted}")
    page.get_by_role("button", name="Resume").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".job-head .state.queued")
    assert gateway.parts.jobs.get(T, contents.jobs["paused"]).state is State.QUEUED
    page.close()


def test_each_page_shows_where_the_focus_is(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    outline = "() => document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle"
    for path in paths_of(contents):
        page.goto(url + path)
        settle(page)
        for _ in range(25):
            page.keyboard.press("Tab")
            style = page.evaluate(outline)
            assert style != "none", f"{path}: {page.evaluate('document.activeElement.outerHTML.slice(0, 200)')}"
            if style is True:  # after the last element
                break
    page.complaints = [complaint for complaint in page.complaints if "404" not in complaint]


def test_job_list_stays_live_and_keeps_checked_rows(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, gateway, contents = served
    job = contents.jobs["queued"]
    page.goto(f"{url}/ui/jobs")
    chosen = page.locator(f"#row-{contents.jobs['succeeded']} input")
    chosen.check()
    chosen.focus()
    gateway.parts.jobs.cancel(T, job)
    page.wait_for_selector(f"#row-{job} .state.cancelled")
    assert chosen.is_checked()
    assert page.evaluate("document.activeElement.value") == contents.jobs["succeeded"], "The focus does not move."
    page.locator(f"#row-{contents.jobs['alone']} input").check()
    page.get_by_role("button", name="Compare selected").click()
    page.wait_for_url("**/ui/compare?*")
    settle(page)
    assert page.locator(".chart canvas").count() >= 3


def test_running_job_is_watched_to_its_end(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, gateway, contents = served
    store, job = gateway.parts.jobs, gateway.parts.jobs.get(T, contents.jobs["running"])
    page.goto(f"{url}/ui/jobs/{job.id}")
    settle(page)
    losses = page.locator("[data-series='mlm']")
    assert re.search(r"MLM loss .*: MLM [\d.]+", losses.locator("[role=img]").get_attribute("aria-label"))
    before = losses.locator("[role=img]").get_attribute("aria-label")
    report_progress(gateway, job, 0.8)
    page.wait_for_selector("text=720")
    page.wait_for_function(
        "before => document.querySelector(\"[data-series='mlm'] [role=img]\").ariaLabel !== before", arg=before
    )
    page.wait_for_selector("#latest >> text=Stored a checkpoint")
    page.get_by_role("button", name="Pause").click()
    page.wait_for_selector(".job-head .state.pausing")
    store.confirm_paused(store.get(T, job.id), "maker")
    page.wait_for_selector(".job-head .state.paused")
    assert page.get_by_role("button", name="Resume").is_visible()


def test_predictions_and_searches_need_no_new_page(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.goto(f"{url}/ui/jobs/{contents.jobs['succeeded']}/model")
    page.evaluate("window.same = true")
    page.fill("#texts", "invoice payment\nlate parcel")
    page.get_by_role("button", name="Classify").click()
    page.wait_for_selector(".answer")
    assert page.locator(".best .label").all_inner_texts() == ["billing", "delivery"]
    assert page.evaluate("window.same")
    page.goto(f"{url}/ui/jobs/{contents.jobs['succeeded']}/selection")
    page.evaluate("window.same = true")
    page.fill("#q", "parcel")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=all these words.")
    assert all("parcel" in text.lower() for text in page.locator(".passages summary").all_inner_texts())
    page.locator(".passages summary").first.click()
    assert page.locator(".queries .tag").first.is_visible()
    assert page.evaluate("window.same")


def test_uploaded_corpus_is_watched_until_it_is_searchable(
    page: Any, served: tuple[str, Gateway, Contents], tmp_path: Path
) -> None:
    text = "a passage about parcels and couriers that is long enough to be kept as one of its own . " * 3
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(f"{text} {number}")
    page.goto(f"{served[0]}/ui/corpora")
    page.fill("#name", "uploaded")
    page.set_input_files("#files", files)
    page.get_by_role("button", name="Upload and index").click()
    page.wait_for_url("**/ui/corpora/uploaded")
    page.wait_for_selector("#live .state.ready")
    page.goto(f"{served[0]}/ui/corpora/uploaded")
    page.fill("#q", "parcel")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=about parcel")


def test_unavailable_service_is_shown_until_it_returns(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.goto(f"{url}/ui/jobs")
    page.route(re.compile("/ui/jobs"), lambda route: route.abort())
    page.wait_for_selector(".offline:not([hidden])")
    page.unroute(re.compile("/ui/jobs"))
    page.wait_for_selector(".offline", state="hidden")
    assert page.locator(f"#row-{contents.jobs['succeeded']}").is_visible()
    page.complaints = [
        complaint for complaint in page.complaints if "ERR_FAILED" not in complaint and "fetch" not in complaint
    ]


def test_first_page_transfers_at_most_200_kilobytes(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.goto(f"{served[0]}/ui/jobs")
    page.wait_for_load_state("load")
    parts = "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    weights = page.evaluate(f"() => {parts}.map(part => part.decodedBodySize)")
    assert len(weights) >= 4
    assert sum(weights) <= 200_000, weights
