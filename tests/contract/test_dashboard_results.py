"""The dashboard's pages of results: scores, selection, model, and studies."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow.parquet as pq
import pytest

from services.api.dashboard import selection_tab
from services.api.dashboard.present import marked
from services.api.dashboard.selection_tab import query_terms
from services.api.dashboard.web import build_environment
from services.api.selections import selection_page
from tests.contract.dashboard_pages import Tags, signed_in
from tests.contract.filled_dashboard import HOSTILE, LABELS, Contents
from tests.contract.gateway import AUTH, Gateway
from tests.contract.study_reports import study_report
from tests.factories import make_resolved, make_spec
from tlm_core.evaluation.summary import model_title
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import DatasetInput, JobSpec, Resolved
from tlm_core.kinds.share_tickets import ShareTicketsOptions
from tlm_core.wire import Provenance, SelectedPassage, Selection

T = "default"


def test_results_show_scores_classes_confusions_and_costs(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    text = browser.get(f"/ui/jobs/{contents.jobs['succeeded']}/results").text
    words = " ".join(Tags(text).words.split())
    report = browser.get(f"/v1/jobs/{contents.jobs['succeeded']}/report", headers=AUTH).json()
    assert f"{report['mean']['test']['macro_f1']:.3f} macro-F1, the task’s metric" in words
    encoder = report["models"]["encoder"]
    mean, spread = (encoder[name]["test"]["macro_f1"] for name in ("mean", "spread"))
    assert f"{mean:.3f} ± {spread:.3f}" in words
    assert all(label in words for label in LABELS) and report["warnings"][0] in words
    assert "linear" in words and "combined" in words and words.count("model.onnx, seeds 0, 1, 2") == 1
    file = report["returned"]["scores"]["test"]["macro_f1"]
    assert f"combined with the linear model: macro-F1 {file:.4f} on test." in words
    assert report["gain"]["words"] in words
    assert "8.3 × 1013 FLOPs The paper’s small scale takes 2.7 × 1018 FLOPs, 33,000 times as many" in words
    confusion = report["returned"]["scores"]["test"]["confusion"]
    cells = re.findall(r'<td class="s\d(?: right)?">(\d+)</td>', text)
    assert [int(cell) for cell in cells] == [n for row in confusion for n in row]
    other = browser.get(f"/ui/jobs/{contents.jobs['succeeded']}/results?seed=0").text
    assert "test, seed 0" in other


def test_pages_show_words_instead_of_identifiers(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    shown = signed_in(gateway).get(f"/ui/jobs/{contents.jobs['queued']}").text
    assert '<span class="name">self train</span>' in shown
    title = build_environment().from_string("{{ 'self_trained' | model }}")
    assert title.render() == "self-trained"


def test_missing_result_names_its_stage(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    answer = browser.get(f"/ui/jobs/{contents.jobs['running']}/results")
    assert answer.status_code == 200 and "will appear here after the “evaluate” stage" in answer.text
    alone = f"/ui/jobs/{contents.jobs['alone']}"
    assert "/selection" not in browser.get(alone).text
    assert "This job selects no passages." in browser.get(f"{alone}/selection").text


@pytest.mark.parametrize(("name", "words"), [("cancelled", "was cancelled"), ("failed", "failed")])
def test_ended_job_without_results_offers_a_retry(filled: tuple[Gateway, Contents], name: str, words: str) -> None:
    gateway, contents = filled
    browser, job = signed_in(gateway), f"/ui/jobs/{contents.jobs[name]}"
    text = browser.get(f"{job}/results").text
    assert f"This job {words} and has no results." in text and "will appear" not in text
    assert f'action="{job}/do/retry"' in text and re.search(r'name="key" value="[\w-]{16,}"', text)


def test_cancelled_job_without_any_model_offers_a_retry(gateway: Gateway) -> None:
    job, _ = gateway.parts.jobs.submit(T, make_spec(), make_resolved())
    gateway.parts.jobs.cancel(T, job.id)
    text = signed_in(gateway).get(f"/ui/jobs/{job.id}/model").text
    assert "This job was cancelled and has no model." in text and "will appear" not in text
    assert f'action="/ui/jobs/{job.id}/do/retry"' in text


def test_number_of_suspect_labels_agrees_with_its_verb() -> None:
    template, job = build_environment().get_template("_trust.html"), {"id": "job_1"}
    single, several = (template.render(report={"suspects": {"total": count}}, job=job) for count in (1, 2))
    assert "1 row has a more probable label" in single and "2 rows have a more probable label" in several


def test_selection_page_shows_provenance_and_search(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, path = signed_in(gateway), f"/ui/jobs/{contents.jobs['succeeded']}/selection"
    first = browser.get(path).text
    assert first.count('<p class="meta">') == 20 and "Next 20" in first and "retrieved by" in first
    row, text = re.findall(r'row (\d+), rank 1</span> <span class="tag">\w+</span> ([^<]+)<', first)[0]
    task = gateway.parts.artifacts.localize(task_of(gateway, contents.jobs["succeeded"])) / "train.parquet"
    assert pq.read_table(task)["text"][int(row) - 1].as_py() == text
    results = browser.get(path + "?q=PARCEL", headers={"HX-Request": "true"}).text
    texts = re.findall(r'<summary class="text">(.*)</summary>', results)
    assert texts and all("<mark>parcel</mark>" in passage.lower() for passage in texts)
    assert "No selected passage contains" in browser.get(path + "?q=zzz").text


def test_selection_page_shows_labels_sources_overlap_and_leaks(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    text = signed_in(gateway).get(f"/ui/jobs/{contents.jobs['succeeded']}/selection").text
    words = " ".join(Tags(text.replace("</dt>", " ").replace("</t", " </t")).words.split())
    assert "60 of 93,518 in manuals" in words and "2 of 420" in words
    assert "account 40 billing 31" in words, "labels with the most passages first"
    assert "handbook 33 55.0 % wiki 15 25.0 % and 3 more sources" in words
    assert "2 passages were removed because of 1 text" in words
    assert re.search(r"test, row 3 .*my parcel is late no. 2 2 Passages", words), "a passage counts once for each text"
    assert text.count('<td class="s5">29</td>') == 2, "the largest overlap, in both orders of its labels"
    assert not set("{}[]") & set(words) and "0.25" not in words


def test_selection_page_states_that_the_leak_filter_was_off(
    filled: tuple[Gateway, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfiltered(*args: Any, **options: Any) -> Selection:
        shown = selection_page(*args, **options)
        params = {**shown.facts["params"], "leak_filter": False}
        return shown.model_copy(update={"facts": {**shown.facts, "params": params}})

    gateway, contents = filled
    monkeypatch.setattr(selection_tab, "selection_page", unfiltered)
    monkeypatch.setattr(selection_tab, "leaked_texts", lambda *_: [])
    text = signed_in(gateway).get(f"/ui/jobs/{contents.jobs['succeeded']}/selection").text
    assert "selection.leak_filter is false" in text
    assert "No passage contains" not in text and "leaks removed" not in text


def test_query_terms_omit_frequent_words_and_stop_words() -> None:
    passages = [
        SelectedPassage(
            id=str(n), text=f"The parcel number {name}", source="s", rank=1, score=1.0, provenance_total=1,
            provenance=(Provenance(train_row=1, rank=1, score=1.0, text=f"is the {name} parcel here"),),
        )
        for n, name in enumerate(("alpha which", "beta", "gamma"))
    ]  # fmt: skip
    assert query_terms(passages) == [{"alpha"}, {"beta"}, {"gamma"}]


def test_marked_text_is_escaped() -> None:
    assert marked("<b>a cart & art</b>", ["ART"]) == ("&lt;b&gt;a c<mark>art</mark> &amp; <mark>art</mark>&lt;/b&gt;")
    assert marked("a cart, art", ["art"], whole=True) == "a cart, <mark>art</mark>"


def task_of(gateway: Gateway, job: str) -> Any:
    from services.common.situation import Situation

    return Situation.read(gateway.parts.jobs, gateway.parts.jobs.get(T, job)).done["validate"]


def test_model_page_classifies_texts(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, path = signed_in(gateway), f"/ui/jobs/{contents.jobs['succeeded']}/predict"
    part = browser.post(path, data={"texts": "invoice payment\n\nlate parcel"}, headers={"HX-Request": "true"}).text
    assert re.findall(r'class="best"><th scope="row" class="label">(\w+)<', part) == ["billing", "delivery"]
    assert "<html" in browser.post(path, data={"texts": "invoice"}).text, "The page works without scripts."
    empty = browser.post(path, data={"texts": " "}, headers={"HX-Request": "true"})
    assert (empty.status_code, "Enter a text" in empty.text) == (422, True)


def test_job_without_any_model_says_when_one_appears(gateway: Gateway) -> None:
    job, _ = gateway.parts.jobs.submit(T, make_spec(), make_resolved())
    browser = signed_in(gateway)
    assert "will appear here after the “baseline” stage" in browser.get(f"/ui/jobs/{job.id}/model").text
    assert browser.post(f"/ui/jobs/{job.id}/predict", data={"texts": "x"}).status_code == 409


def test_linear_model_can_be_tried_before_the_job_ends(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, path = signed_in(gateway), f"/ui/jobs/{contents.jobs['running']}"
    note = "The job is running. This is its linear model; the final model will replace it."
    assert note in browser.get(f"{path}/model").text and "The linear model is ready" in browser.get(path).text
    part = browser.post(
        f"{path}/predict", data={"texts": "invoice charge\nparcel"}, headers={"HX-Request": "true"}
    ).text
    assert re.findall(r'class="best"><th scope="row" class="label">(\w+)<', part) == ["billing", "delivery"]
    assert "Predicted by the linear model, which is not the final model." in part
    assert browser.get(f"{path}/files/linear/model.onnx").status_code == 200
    assert "linear model is ready" not in browser.get(f"/ui/jobs/{contents.jobs['succeeded']}").text


def test_model_page_abstains_below_the_minimum_confidence(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, path = signed_in(gateway), f"/ui/jobs/{contents.jobs['succeeded']}/predict"
    form, part = {"texts": "invoice payment\nzzz", "confidence": "0.5"}, {"HX-Request": "true"}
    text = browser.post(path, data=form, headers=part).text
    assert text.count("No label") == 1 and text.count('class="best"') == 1
    wrong = browser.post(path, data={**form, "confidence": "2"}, headers=part)
    assert (wrong.status_code, "a number from 0 to 1" in wrong.text) == (422, True)


def test_session_can_download_files(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, job = signed_in(gateway), contents.jobs["succeeded"]
    listed = re.findall(r'href="(/ui/jobs/[^"]+/files/[^"]+)"', browser.get(f"/ui/jobs/{job}/model").text)
    assert f"/ui/jobs/{job}/files/model/weights.bin" in listed
    for path in listed:
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["content-disposition"][:10]) == (200, "attachment")
    assert browser.get(f"/ui/jobs/{job}/files/nope").status_code == 404


def test_pages_show_the_metric_of_the_task(gateway: Gateway) -> None:
    store = gateway.parts.jobs
    correlations = {"pearson": 0.8125, "spearman": 0.7875}
    wanted = {"pearson": correlations, "spearman": correlations, "matthews": {"matthews": 0.4375}}
    for metric, scores in wanted.items():
        usual = dict.fromkeys(("macro_f1", "micro_f1", "accuracy"), None if scores is correlations else 0.25)
        job, _ = store.submit(T, make_spec(), make_resolved())
        claimed = store.claim("maker", 60)
        assert claimed is not None
        folder = gateway.root / "files" / metric
        folder.mkdir(parents=True)
        test = usual | scores | {"deduplicated": 0.125}
        report = {"metric": metric, "mean": {"test": test}, "spread": {"test": {}}, "cost": None}
        (folder / "report.json").write_text(json.dumps(report))
        ref = gateway.parts.artifacts.write(f"default/{metric}", folder, artifact=metric, stage="evaluate")
        artifacts = {plan_of(claimed).report: {"artifact": metric, "ref": ref.model_dump()}}
        store.finish(claimed, "maker", {"artifacts": artifacts, "summary": {"metric": metric, "mean": report["mean"]}})
        browser = signed_in(gateway)
        row = Tags(browser.get("/ui/jobs").text.partition(f'id="row-{job.id}"')[2].partition("</tr>")[0]).words
        assert f"{scores[metric]:.3f} {metric}" in " ".join(row.split())
        table = Tags(browser.get(f"/ui/compare?id={job.id}").text).words
        assert all(word in table for name, value in scores.items() for word in (name, f"{value:.3f}"))
        assert ("macro-F1" in table) == (scores is not correlations)


@pytest.mark.parametrize("kind", ["learning_curve", "prune", "share_tickets"])
def test_studies_show_summary_and_plot(gateway: Gateway, kind: str) -> None:
    others = (DatasetInput(id="ds_2", ref=make_resolved().dataset),) if kind == "share_tickets" else ()
    options = {"options": ShareTicketsOptions(others=("b",))} if others else {}
    report = study_report(kind) | {"words": f"Said of {HOSTILE}."}
    job = finished_study(gateway, kind, report, make_spec(kind=kind, **options), make_resolved(others=others))
    browser = signed_in(gateway)
    for path in ("/ui/jobs", *(f"/ui/jobs/{job}{tab}" for tab in ("", "/results", "/log")), f"/ui/compare?id={job}"):
        answer = browser.get(path)
        assert (answer.status_code, Tags(answer.text).has("img", onerror="x")) == (200, False), path
    assert HOSTILE in Tags(browser.get(f"/ui/jobs/{job}/results").text).words
    assert 'class="running"' not in browser.get(f"/ui/jobs/{job}").text
    plot = browser.get(f"/ui/jobs/{job}/plot.svg")
    assert plot.headers["content-type"] == "image/svg+xml"
    assert "script-src 'self'" in plot.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("kind", "models"),
    [
        ("learning_curve", ["majority", "bilstm", "encoder", "linear"]),
        ("prune", ["majority", "encoder", "stock", "linear"]),
        ("share_tickets", ["majority", "alone", "multi_task", "tickets", "linear"]),
    ],
)
def test_comparison_has_all_models_of_a_study(gateway: Gateway, kind: str, models: list[str]) -> None:
    report = study_report(kind)
    jobs = [finished_study(gateway, f"{kind}{number}", report) for number in range(2)]
    answer = signed_in(gateway).get(f"/v1/jobs/compare?ids={','.join(jobs)}", headers=AUTH)
    assert answer.status_code == 200, answer.text
    for outcome in answer.json()["outcomes"]:
        assert [model["name"] for model in outcome["models"]] == models
        assert all(isinstance(model["mean"][report["metric"]], float) for model in outcome["models"])
    words = Tags(signed_in(gateway).get(f"/ui/compare?id={jobs[0]}&id={jobs[1]}").text).words
    assert all(model_title(name) in words for name in models)


def finished_study(
    gateway: Gateway, name: str, report: dict[str, Any], spec: JobSpec | None = None, resolved: Resolved | None = None
) -> str:
    """Return the id of a succeeded job with this report and a plot. name: of the artifact."""
    store = gateway.parts.jobs
    job, _ = store.submit(T, spec or make_spec(), resolved or make_resolved())
    claimed = store.claim("maker", 60)
    assert claimed is not None
    folder = gateway.root / "files" / name
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "plot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    ref = gateway.parts.artifacts.write(f"default/{name}", folder, artifact=name, stage="evaluate")
    published = {plan_of(claimed).report: {"artifact": name, "ref": ref.model_dump()}}
    store.finish(claimed, "maker", {"artifacts": published, "summary": {"mean": report["mean"], "words": "x"}})
    return job.id
