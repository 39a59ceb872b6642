"""Layout and charts of the dashboard in headless Chromium."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.filled_dashboard import Contents
from tests.contract.gateway import Gateway
from tests.integration.browser import settle


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


def test_tables_of_the_results_need_no_scrolling_on_a_phone(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    url, _, contents = served
    page.set_viewport_size({"width": 390, "height": 740})
    page.goto(f"{url}/ui/jobs/{contents.jobs['succeeded']}/results")
    hidden = page.locator(".scroll").evaluate_all("boxes => boxes.map(box => box.scrollWidth - box.clientWidth)")
    assert len(hidden) >= 5 and max(hidden) <= 0


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
