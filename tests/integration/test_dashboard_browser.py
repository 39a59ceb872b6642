"""The dashboard in headless Chromium: live updates, keyboard, phone, color schemes, and accessibility (axe)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.filled_dashboard import HOSTILE, Contents, filled_gateway, report_progress
from tests.contract.gateway import TOKEN, Gateway
from tests.integration.browser import chromium, settle, sign_in
from tlm_core.jobs.states import State
from tlm_core.kinds.prune import PruneOptions

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
T = "default"
TABS = ("results", "labels", "selection", "model", "log")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running_browser:
        yield running_browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Gateway, Contents]]:
    with filled_gateway(tmp_path_factory.mktemp("dashboard")) as (gateway, contents), gateway.served() as url:
        yield url, gateway, contents


@pytest.fixture
def page(browser: Any, served: tuple[str, Gateway, Contents]) -> Iterator[Any]:
    """A signed-in page. A console error or warning fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: message.type in ("error", "warning") and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
    sign_in(page, served[0])
    yield page
    assert page.complaints == []
    context.close()


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


def test_comparison_of_three_jobs_fits_the_screen(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{url}/ui/compare?" + "&".join(f"id={contents.jobs[n]}" for n in ("succeeded", "alone", "hostile")))
    wide = "() => { const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth; }"
    assert page.evaluate(wide) <= 0


def test_parts_of_a_page_line_up_on_a_wide_screen(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": 1440, "height": 900})
    place = "part => { const box = part.getBoundingClientRect(); return [Math.round(box.left), Math.round(box.top)]; }"

    def places(*selectors: str) -> list[list[int]]:
        return [page.locator(selector).first.evaluate(place) for selector in selectors]

    page.goto(f"{url}/ui/jobs/{contents.jobs['succeeded']}/results")
    (_, first), (_, second), (_, bars), (_, matrix) = places("#classes", "#confusion", ".bars >> nth=1", ".matrix")
    assert (first, bars) == (second, matrix), "By class, and the confusion matrix"
    left = "span => span.getBoundingClientRect().left - span.closest('ol').getBoundingClientRect().left"
    assert page.locator(".confusions .num").first.evaluate(left) == 0
    page.goto(f"{url}/docs")
    settle(page)
    (title, _), (operation, _) = places("#reference .info", "#reference .opblock")
    assert title == operation
    page.goto(f"{url}/ui/jobs/{contents.jobs['running']}")
    gap = "now => now.getBoundingClientRect().top - now.previousElementSibling.getBoundingClientRect().bottom"
    assert page.locator(".now").evaluate(gap) >= 12


def test_long_label_of_a_dataset_has_one_line(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{served[0]}/ui/datasets/{served[2].dataset}")
    label = page.locator("th.label").first
    height = label.evaluate("cell => cell.clientHeight")
    label.evaluate("cell => { cell.textContent = 'ENVIRONMENTAL_FACTORS/RESULTS'; }")
    assert label.evaluate("cell => cell.clientHeight") == height, "The label has one line."


@pytest.mark.parametrize("path", ["/ui/datasets", "/ui/corpora", "/ui/submit"])
def test_rows_of_a_form_are_close_together(page: Any, served: tuple[str, Gateway, Contents], path: str) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(served[0] + path)
    settle(page)
    widest_gap = """form => {
        const boxes = [...form.querySelectorAll("label, legend, summary, input, select, textarea, button")]
            .map(one => one.getBoundingClientRect()).filter(box => box.height).sort((a, b) => a.top - b.top);
        let [gap, bottom] = [0, boxes[0].bottom];
        for (const box of boxes) [gap, bottom] = [Math.max(gap, box.top - bottom), Math.max(bottom, box.bottom)];
        return gap;
    }"""
    assert 0 < page.locator("form.fields").evaluate(widest_gap) < 40


def test_alias_of_the_placeholder_fits_its_field(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{served[0]}/ui/models")
    hidden = "field => { field.value = 'questions@production'; return field.scrollWidth - field.clientWidth; }"
    assert page.locator(".aliases [name=alias]").first.evaluate(hidden) <= 0


@pytest.mark.parametrize("width", [1440, 390])
def test_long_labels_do_not_break_inside_a_word(page: Any, served: tuple[str, Gateway, Contents], width: int) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": width, "height": 900})
    lines_of_words = """() => [...document.querySelectorAll("th.label")].flatMap(cell => {
        cell.innerHTML = "ENVIRONMENTAL_<wbr>FACTORS/<wbr>INFRASTRUCTURE";
        return [...cell.childNodes].filter(node => node.nodeType === Node.TEXT_NODE).map(word => {
            const range = document.createRange();
            range.selectNodeContents(word);
            return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
        });
    })"""
    job = f"/ui/jobs/{contents.jobs['succeeded']}"
    for path, least in ((f"/ui/datasets/{contents.dataset}", 6), (f"{job}/results", 12), (f"{job}/selection", 12)):
        page.goto(url + path)
        lines = page.evaluate(lines_of_words)
        assert len(lines) >= 3 * least and set(lines) == {1}, path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_label_of_a_row_leaves_room_for_the_text(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.set_viewport_size({"width": 800, "height": 900})
    page.goto(f"{served[0]}/ui/datasets/{served[2].dataset}")
    chip = page.locator(".rows .tag").first
    chip.evaluate(
        "tag => { tag.innerHTML = 'ENVIRONMENTAL_<wbr>FACTORS/<wbr>RESULTS_<wbr>AND_<wbr>METHODS'.repeat(2); }"
    )
    assert chip.evaluate("tag => tag.closest('td').clientWidth") <= 200
    table = page.locator(".rows").first
    assert table.evaluate("table => table.scrollWidth - table.parentElement.clientWidth") <= 0


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


def test_charts_without_data_take_one_line(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": 390, "height": 740})
    answers = [{"curves": [], "live": True}, {"curves": [{"name": "", "series": {"mlm": {"x": [38], "y": [2.5]}}}]}]
    page.route("**/points?*", lambda route: route.fulfill(json=answers.pop(0)))
    page.goto(f"{url}/ui/jobs/{contents.jobs['running']}?stage=joint")
    area = page.locator("[data-points]")
    page.get_by_text("No data yet.").wait_for()
    assert area.bounding_box()["height"] < 40
    page.wait_for_selector(".chart canvas")
    assert page.locator(".chart:visible").count() == 1 and page.get_by_text("No data yet.").is_hidden()
    assert page.locator(".u-legend .u-value:visible").all_inner_texts() == ["38", "2.50"]


def test_charts_have_distinct_colors_and_smooth_noisy_lines(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.goto(f"{url}/ui/jobs/{contents.jobs['alone']}?stage=finetune")
    settle(page)
    series = "figure => figure.chart.series.slice(1).map(one => one.stroke()).filter(Boolean)"
    task = page.locator("[data-series='task validation_loss']")
    assert len(set(task.evaluate(series))) == 2, "Training and validation have distinct colors."
    assert task.evaluate("figure => figure.chart.series.map(one => Boolean(one.dash))") == [False, False, True]
    page.goto(f"{url}/ui/jobs/{contents.jobs['succeeded']}?stage=joint")
    settle(page)
    losses = page.locator("[data-series='mlm']")
    assert len(set(losses.evaluate(series))) == 6, "Each of three seeds has a line and a pale measured line."
    assert losses.locator(".u-legend .u-series:visible").count() == 1 + 3
    page.get_by_label("Smooth noisy lines").uncheck()
    assert len(losses.evaluate(series)) == 3


def test_axis_of_scores_ends_at_one(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.goto(f"{url}/ui/jobs/{contents.jobs['succeeded']}?stage=finetune")
    settle(page)
    assert page.locator("[data-series='score']").evaluate("figure => figure.chart.scales.y.max") <= 1
    range_of = "([name, y]) => options([{name, x: [1], y}], 300).scales.y.range(null, y[0], y[0])[1]"
    assert page.evaluate(range_of, ["score", [0.97]]) == 1
    assert page.evaluate(range_of, ["mlm", [0.97]]) > 1


def test_curve_of_a_comparison_has_color_and_letter_of_its_job(
    page: Any, served: tuple[str, Gateway, Contents]
) -> None:
    url, _, contents = served
    curve = {"name": "B", "column": 1, "series": {name: {"x": [1, 2], "y": [2, 1]} for name in ("task", "score")}}
    page.route("**/compare/points*", lambda route: route.fulfill(json={"curves": [curve], "live": False}))
    page.goto(f"{url}/ui/compare?id={contents.jobs['queued']}&id={contents.jobs['alone']}")
    settle(page)
    color = "() => getComputedStyle(document.documentElement).getPropertyValue('--c1').trim()"
    shown = "figure => figure.chart.series.slice(1).map(one => [one.label, one.stroke()])"
    for series, label in (("score", "B"), ("task validation_loss", "B, training")):
        assert page.locator(f"[data-series='{series}']").evaluate(shown) == [[label, page.evaluate(color)]]


def test_lists_and_a_comparison_of_two_jobs_need_no_scrolling_on_a_phone(
    page: Any, served: tuple[str, Gateway, Contents]
) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": 390, "height": 740})
    jobs = contents.jobs
    labels = [f"/ui/jobs/{jobs[name]}/labels" for name in ("succeeded", "hostile")]
    lists = ["/ui/jobs", "/ui/models", "/ui/datasets", "/ui/corpora", "/ui/corpora/manuals", *labels]
    data = [f"/ui/datasets/{dataset}" for dataset in (contents.dataset, contents.hostile_dataset)]
    for path in [*lists, *data, f"/ui/compare?id={jobs['succeeded']}&id={jobs['alone']}"]:
        page.goto(url + path)
        tables = page.locator(".cards, .compare")
        hidden = "tables => tables.map(table => table.scrollWidth - table.parentElement.clientWidth)"
        assert tables.count() and max(tables.evaluate_all(hidden)) <= 0, path


def test_wide_table_on_a_phone_has_a_shadow_where_it_continues(
    page: Any, served: tuple[str, Gateway, Contents]
) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": 390, "height": 740})
    page.goto(f"{url}/ui/compare?" + "&".join(f"id={contents.jobs[n]}" for n in ("succeeded", "alone", "hostile")))
    layers = "box => [box.scrollWidth > box.clientWidth, getComputedStyle(box).backgroundAttachment]"
    assert page.locator(".scroll").evaluate(layers) == [True, "local, local, scroll, scroll"]


def test_dragging_zooms_a_chart_and_a_double_click_resets_it(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.goto(f"{url}/ui/jobs/{contents.jobs['succeeded']}?stage=joint")
    settle(page)
    losses = page.locator("[data-series='mlm']")
    steps = "figure => [figure.chart.scales.x.min, figure.chart.scales.x.max]"
    first, last = losses.evaluate(steps)
    losses.scroll_into_view_if_needed()
    box = losses.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20, steps=4)
    page.mouse.up()
    middle = (first + last) / 2
    assert losses.evaluate(steps) == pytest.approx([(first + middle) / 2, middle], abs=(last - first) / 50)
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + 20)
    assert losses.evaluate(steps) == [first, last]


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


def test_estimate_follows_the_form_and_snippets_are_copied(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{served[0]}/ui/submit?dataset=tickets&preset=best")
    page.wait_for_selector("#preview >> text=joint × 3")
    page.locator("[name=scale][value=instant]").check()
    page.wait_for_selector("#preview >> text=linear, on n-grams")
    page.get_by_text("Copy as curl").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_role("button", name="Copied").wait_for()
    assert '"scale": "instant"' in page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("scripts", [True, False])
def test_form_shows_that_the_instant_scale_uses_no_corpus_and_no_seed(
    browser: Any, served: tuple[str, Gateway, Contents], scripts: bool
) -> None:
    page = browser.new_page(java_script_enabled=scripts)
    sign_in(page, served[0])
    page.goto(f"{served[0]}/ui/submit?preset=instant&dataset=tickets")
    corpus, hint = page.locator("#corpus"), page.get_by_text("not used at scale instant")
    seeds, no_seed = page.locator("#seeds"), page.get_by_text("the scale instant uses no seed")
    # Without scripts, nothing could enable the field again at another scale.
    assert (corpus.is_disabled(), hint.is_visible()) == (scripts, True)
    assert (seeds.is_disabled(), no_seed.is_visible()) == (scripts, True)
    page.locator("[name=scale][value=tiny]").check()
    assert (seeds.is_disabled(), no_seed.is_visible(), seeds.input_value()) == (False, False, "0, 1, 2")
    assert (corpus.is_disabled(), hint.is_visible(), corpus.input_value()) == (False, False, "manuals")
    page.locator("[name=scale][value=instant]").check()
    assert (corpus.is_disabled(), hint.is_visible()) == (scripts, True)
    page.close()


def test_preset_keeps_the_typed_values(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.goto(f"{served[0]}/ui/submit?preset=best")
    page.fill("#name", "night run")
    page.fill("#overrides", "finetune.epochs = 5")
    page.select_option("#corpus", "manuals")
    page.get_by_role("link", name="Quick").click()
    assert page.locator("[name=scale]:checked").input_value() == "quick" and page.input_value("#seeds") == "0, 1, 2"
    assert page.locator(".presets [aria-current=true]").all_inner_texts()[0].startswith("Quick")
    fields = [page.input_value(field) for field in ("#name", "#overrides", "#corpus")]
    assert fields == ["night run", "finetune.epochs = 5", "manuals"]
    page.wait_for_selector("#preview >> text=5 epochs")


def test_marked_preset_follows_scale_and_seeds(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.goto(f"{served[0]}/ui/submit")
    scale, marked = "[name=scale][value={}]", page.locator(".presets [aria-current=true] strong")
    assert marked.all_inner_texts() == ["Instant"]
    page.locator("[name=kind][value=prune]").check()
    page.locator(scale.format("quick")).check()
    assert marked.all_inner_texts() == ["Quick"]
    page.fill("#seeds", "7")
    page.locator("#seeds").blur()
    assert marked.all_inner_texts() == []
    page.locator(scale.format("instant")).check()
    assert marked.all_inner_texts() == ["Instant"], "the scale instant uses no seed"


def test_recipe_key_is_added_to_the_overrides_once(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.goto(f"{served[0]}/ui/submit?preset=best")
    settle(page)
    page.fill("#overrides", "joint.rho1 = 2")
    page.select_option("#pick", "finetune.epochs")
    for value in ("5", "6"):
        page.fill("#picked-value", value)
        page.click("[data-override]")
    assert page.input_value("#overrides") == "joint.rho1 = 2\nfinetune.epochs = 6"
    page.wait_for_selector("#preview >> text=6 epochs")


def test_study_form_works_by_keyboard_and_shows_only_its_fields(
    page: Any, served: tuple[str, Gateway, Contents]
) -> None:
    url, gateway, _ = served
    page.goto(f"{url}/ui/submit?preset=best")
    own = {
        kind: f"[id='{kind}.{option}']"
        for kind, option in {"learning_curve": "sizes", "prune": "levels", "share_tickets": "tickets"}.items()
    }
    page.locator("[name=kind][value=train]").focus()
    for kind in own:
        page.keyboard.press("ArrowDown")
        assert page.locator(f"[name=kind][value={kind}]").is_checked()
        assert [name for name, field in own.items() if page.locator(field).is_visible()] == [kind]
    page.keyboard.press("ArrowUp")
    page.select_option("#corpus", "")
    for field, text in {own["prune"]: "0.2", "#metadata": "team = search", "#priority": "3", "#minutes": "90"}.items():
        page.locator(field).focus()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type(text)
    page.get_by_role("button", name="Estimate").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#preview >> text=ticket × 9")
    page.get_by_role("button", name="Submit").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/jobs/job_*")
    spec = gateway.parts.jobs.get(T, page.url.rsplit("/", 1)[1]).spec
    assert spec.options == PruneOptions(levels=(0.2,))
    assert (spec.kind, spec.metadata, spec.priority, spec.max_runtime_seconds) == ("prune", {"team": "search"}, 3, 5400)


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
