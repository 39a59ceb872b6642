"""The dashboard's form for a new job."""

from __future__ import annotations

import html
import json
import re
import shlex
from statistics import fmean
from typing import Any

import httpx
import pytest

from services.api.dashboard.job_form import PRESETS
from services.api.dashboard.present import duration
from services.api.dashboard.snippets import snippets
from tests.contract.dashboard_pages import Tags, signed_in
from tests.contract.filled_dashboard import Contents, fill
from tests.contract.gateway import TRAIN, Gateway, add_dataset, add_version
from tests.support import ROOT
from tests.unit.client.gateway import tlm
from tlm_client.client import TLMClient
from tlm_core.corpus.states import CorpusState
from tlm_core.jobs.spec import JobRecord, JobSpec
from tlm_core.kinds.learning_curve import LearningCurveOptions
from tlm_core.kinds.prune import PruneOptions
from tlm_core.kinds.share_tickets import ShareTicketsOptions
from tlm_core.kinds.train import TrainOptions
from tlm_core.studies.params import LSTM

T = "default"


def test_repeated_form_creates_one_job(gateway: Gateway) -> None:
    fill(gateway)
    browser = signed_in(gateway)
    page = Tags(browser.get("/ui/submit").text)
    key = next(given["value"] for tag, given in page.tags if tag == "input" and given.get("name") == "key")
    data = {
        "dataset": "tickets",
        "corpus": "manuals",
        "seeds": "0, 1",
        "overrides": "joint.rho2 = 5\n",
        "key": key or "",
    }
    first, second = (browser.post("/ui/submit", data=data).headers["location"] for _ in range(2))
    assert first == second
    job = gateway.parts.jobs.get(T, first.rsplit("/", 1)[1])
    assert (job.spec.seeds, job.spec.overrides, job.resolved.recipe.joint.rho2) == ((0, 1), {"joint.rho2": 5}, 5)
    alone = browser.post("/ui/submit", data={**data, "corpus": "", "key": "another"}).headers["location"]
    assert gateway.parts.jobs.get(T, alone.rsplit("/", 1)[1]).resolved.corpus_name is None


def test_form_sets_name_labels_priority_and_time_limit(gateway: Gateway) -> None:
    fill(gateway)
    assert (submitted(gateway, name=" first try ").spec.name, submitted(gateway).spec.name) == ("first try", None)
    job = submitted(gateway, metadata="team = search\n\nrun = a = b", priority="-3", minutes="1.5")
    assert job.spec.metadata == {"team": "search", "run": "a = b"}
    assert (job.spec.priority, job.spec.max_runtime_seconds) == (-3, 90)
    shown = " ".join(Tags(signed_in(gateway).get(f"/ui/jobs/{job.id}").text).words.split())
    assert "team: search" in shown and "priority-3" in shown and "time limit1 min 30 s" in shown
    plain = submitted(gateway, metadata="", minutes=" ")
    assert (plain.spec.metadata, plain.spec.priority, plain.spec.max_runtime_seconds) == ({}, 0, None)


def test_each_kind_reads_its_own_fields_and_no_others(gateway: Gateway) -> None:
    fill(gateway)
    fields = {
        "learning_curve.sizes": "10, 50, 1", "learning_curve.models": ["encoder"], "learning_curve.lstm": "LSTM-1-128",
        "learning_curve.margin": "0.02", "prune.levels": "0.25", "prune.tickets": ["losing"],
        "prune.as_published": "true", "share_tickets.level": "0.4", "share_tickets.others": ["films", "tickets"],
        "share_tickets.tickets": "tickets = 0.2",
    }  # fmt: skip
    job = submitted(gateway, kind="learning_curve", **fields)
    words = Tags(signed_in(gateway).get(f"/ui/jobs/{job.id}").text).words
    assert "options.sizes" in words and "options.levels" not in words
    lstm = LSTM(layers=1, hidden=128, embedding=128)
    assert job.spec.options == LearningCurveOptions(
        sizes=(10, 50, 1), models=("bilstm", "encoder"), lstm=lstm, margin=0.02
    )
    pruning = submitted(gateway, kind="prune", **fields).spec
    assert pruning.options == PruneOptions(levels=(0.25,), tickets=("winning", "losing"), as_published=True)
    sharing = submitted(gateway, kind="share_tickets", **fields).spec
    assert sharing.options == ShareTicketsOptions(others=("films",), level=0.4, tickets={"tickets": 0.2})
    assert submitted(gateway, kind="train", **fields).spec.options == TrainOptions()


def test_form_for_the_instant_scale_ignores_the_corpus(gateway: Gateway) -> None:
    fill(gateway)
    job = submitted(gateway, scale="instant")
    assert (job.spec.corpus, job.resolved.corpus_name, job.spec.scale) == (None, None, "instant")
    text = signed_in(gateway).get(f"/ui/jobs/{job.id}").text
    assert "finetune.epochs" not in text and "export linear" in text
    data = {"dataset": "tickets", "corpus": "manuals", "scale": "instant"}
    preview = signed_in(gateway).post("/ui/submit/preview", data=data).text
    assert "linear, on n-grams" in preview and "joint stage" not in preview


def test_form_for_a_prune_job_ignores_inherited_fields(gateway: Gateway) -> None:
    trained = gateway.parts.jobs.get(T, fill(gateway).jobs["succeeded"])
    job = submitted(gateway, kind="prune", scale="small", seeds="9",
                    **{"prune.job": f" {trained.id} ", "prune.levels": "0.2"})  # fmt: skip
    assert job.spec.source_job == trained.id
    assert (job.spec.scale, job.spec.seeds, job.spec.overrides) == ("tiny", trained.spec.seeds, trained.spec.overrides)
    assert trained.result is not None
    assert job.resolved.reused["joint.s0"] == trained.result.artifacts["joint.s0"]


def test_form_suggests_finished_jobs_with_an_encoder_to_prune(gateway: Gateway) -> None:
    jobs, browser = fill(gateway).jobs, signed_in(gateway)
    page = browser.get("/ui/submit").text
    assert "optional: id of a finished job" in page
    suggested = re.search(r'<datalist id="jobs">(.*?)</datalist>', page)
    assert suggested and Tags(page).has("input", name="prune.job", list="jobs")
    wanted = {jobs[name] for name in ("succeeded", "alone", "hostile")}
    assert {given["value"] for _, given in Tags(suggested[1]).tags} == wanted
    data = {"dataset": "tickets", "kind": "prune", "prune.levels": "0.2", "scale": "instant"}
    refused = Tags(browser.post("/ui/submit/preview", data=data).text).words
    assert "Choose a scale other than 'instant', or name a finished job of another scale in 'job'." in refused
    named = browser.post("/ui/submit/preview", data={**data, "prune.job": jobs["alone"]}).text
    assert "No estimate yet" not in named


def test_empty_form_shows_the_defaults_of_each_kind(gateway: Gateway) -> None:
    fill(gateway)
    inputs = [given for tag, given in Tags(signed_in(gateway).get("/ui/submit").text).tags if tag == "input"]
    checked = {
        name: [given["value"] for given in inputs if given.get("name") == name and "checked" in given]
        for name in ("kind", "learning_curve.models", "prune.tickets", "share_tickets.others")
    }
    assert checked["kind"] == ["train"] and checked["share_tickets.others"] == []
    assert checked["learning_curve.models"] == list(LearningCurveOptions().models)
    assert checked["prune.tickets"] == list(PruneOptions().tickets)
    typed = {given["id"]: given["value"] or "" for given in inputs if given.get("id")}
    assert [float(size) for size in typed["learning_curve.sizes"].split(",")] == list(LearningCurveOptions().sizes)
    assert [float(level) for level in typed["prune.levels"].split(",")] == list(PruneOptions().levels)
    assert (typed["learning_curve.lstm"], typed["share_tickets.level"]) == ("4-256", "0.15")


@pytest.mark.parametrize(("preset", "scale"), [
    ("", "instant"), ("instant", "instant"), ("quick", "quick"), ("best", "tiny"),
])  # fmt: skip
def test_preset_fills_scale_and_seeds(filled: tuple[Gateway, Contents], preset: str, scale: str) -> None:
    query = f"?dataset=tickets&preset={preset}" if preset else "?dataset=tickets"
    read = Tags(signed_in(filled[0]).get(f"/ui/submit{query}").text)
    inputs = [given for tag, given in read.tags if tag == "input"]
    assert [given["value"] for given in inputs if given.get("name") == "scale" and "checked" in given] == [scale]
    assert next(given["value"] for given in inputs if given.get("name") == "seeds") == "0, 1, 2"
    shown = [given["href"] or "" for tag, given in read.tags if tag == "a" and given.get("aria-current") == "true"]
    assert [f"preset={preset or 'instant'}" in link for link in shown] == [True]


def test_best_preset_has_the_highest_mean_score_over_the_tasks() -> None:
    table = re.search(r"evidence: begin -->\n(.*?)<!--", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert table
    _, scales, _, *rows = ([cell.strip(" *") for cell in line.split("|")] for line in ["", *table[1].splitlines()])
    columns = {scale: next(n for n, cell in enumerate(scales) if f"scale `{scale}`" in cell) for scale in
               (preset.scale for preset in PRESETS.values())}  # fmt: skip
    assert len(rows) == 5
    scores = {scale: fmean(float(row[column].split()[0]) for row in rows) for scale, column in columns.items()}
    assert scores[PRESETS["best"].scale] == max(scores.values()), scores


def test_presets_and_scales_name_no_durations(filled: tuple[Gateway, Contents]) -> None:
    text = signed_in(filled[0]).get("/ui/submit").text
    presets, scales = (re.search(rf"<{start}.*?</{end}>", text, re.DOTALL) for start, end in (
        ('nav class="presets"', "nav"), ("legend>Scale", "fieldset")))  # fmt: skip
    assert presets and scales and not re.search("minute|second|hour", presets[0] + scales[0])


def test_form_selects_the_corpus_of_the_dataset_or_the_only_one(gateway: Gateway) -> None:
    contents, browser = fill(gateway), signed_in(gateway)
    add_dataset(gateway, "unused", {"train": TRAIN})

    def selected(query: str) -> list[str | None]:
        tags = Tags(browser.get(f"/ui/submit{query}").text).tags
        return [given["value"] for tag, given in tags if tag == "option" and "selected" in given and "value" in given]

    assert selected("") == selected("?dataset=unused") == selected("?preset=best") == ["manuals"]
    refused = browser.post("/ui/submit", data={"dataset": "tickets", "corpus": "", "seeds": "x"}).text
    assert "Job not submitted" in refused and not re.search(r'value="manuals" selected', refused)
    add_version(gateway, "forum", "1" * 12, CorpusState.READY)
    assert selected("") == selected("?dataset=unused") == selected("?dataset=nope") == []
    assert selected("?dataset=tickets") == selected(f"?dataset={contents.dataset}") == ["manuals"]
    assert selected("?dataset=unused&corpus=manuals") == ["manuals"]


def test_unknown_preset_is_refused(filled: tuple[Gateway, Contents]) -> None:
    answer = signed_in(filled[0]).get("/ui/submit?preset=huge")
    assert answer.status_code == 422 and "instant, quick, best" in answer.text


SPEC = JobSpec.model_validate({
    "dataset": "reviews", "corpus": "it's mine", "seeds": [0, 1], "scale": "small", "kind": "prune",
    "options": {"levels": [0.2]}, "overrides": {"finetune.epochs": 5, "finetune.rates": [0.001, 0.002]},
    "metadata": {"team": "search desk"}, "priority": -3, "max_runtime_seconds": 90, "name": "first try",
    "max_workers": 4, "max_attempts": 5,
})  # fmt: skip


def test_snippets_omit_options_without_a_value() -> None:
    spec = JobSpec.model_validate({"dataset": "toy", "kind": "train", "options": {}})
    assert not [language for language, text in snippets(spec, "http://gateway").items() if "options" in text]


def test_uploads_can_be_copied_as_python(gateway: Gateway) -> None:
    browser = signed_in(gateway)
    for page, method in (("datasets", TLMClient.add_dataset), ("corpora", TLMClient.add_corpus)):
        text = html.unescape(browser.get(f"/ui/{page}").text)
        program = re.search(r'aria-label="Python"><code>(.*?)</code>', text, re.DOTALL)
        assert program and f"tlm.{method.__name__}(" in program[1]
        compile(program[1], page, "exec")


def test_snippets_send_the_request_of_the_form() -> None:
    texts = snippets(SPEC, "http://gateway:8321")
    curl = shlex.split(texts["curl"].replace("\\\n", ""))
    assert JobSpec.model_validate_json(curl[curl.index("--json") + 1]) == SPEC
    assert curl[-1] == "http://gateway:8321/v1/jobs"
    call = texts["Python"].rpartition("tlm.submit(")[2].removesuffix(")")
    assert eval(call, {"JobSpec": JobSpec}) == SPEC


def test_command_line_snippet_sends_the_request_of_the_form() -> None:
    arguments = shlex.split(snippets(SPEC, "http://gateway:8321")["command line"].replace("\\\n", ""))[1:]
    bodies: list[dict[str, Any]] = []

    def receive(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(422, json={"status": 422, "code": "invalid_request", "title": "x", "detail": "x"})

    tlm(receive, *arguments)
    assert JobSpec.model_validate(bodies[0]) == SPEC


def test_preview_offers_the_request_and_explains_a_missing_field(filled: tuple[Gateway, Contents]) -> None:
    browser = signed_in(filled[0])
    text = browser.post("/ui/submit/preview", data={"dataset": "tickets", "corpus": "manuals"}).text
    words = Tags(text).words
    assert "tlm submit \\\n  --dataset tickets \\\n  --corpus manuals \\\n  --seed 0 --seed 1 --seed 2" in words
    assert "http://testserver/v1/jobs" in words and "JobSpec(dataset='tickets'" in words
    missing = browser.post("/ui/submit/preview", data={"dataset": "tickets", "corpus": "manuals", "seeds": "x"})
    assert missing.status_code == 200 and "No estimate yet: Seeds: Expected whole numbers" in missing.text


def submitted(gateway: Gateway, **fields: Any) -> JobRecord:
    """Submit the form, and return the job."""
    answer = signed_in(gateway).post("/ui/submit", data={"dataset": "tickets", "corpus": "manuals", **fields})
    assert answer.status_code == 303, answer.text
    return gateway.parts.jobs.get(T, answer.headers["location"].rsplit("/", 1)[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seeds": "one"}, "whole numbers"),
        ({"overrides": "joint.rho9 = 5"}, "Did you mean"),
        ({"overrides": "joint.rho2"}, "key = value"),
        ({"overrides": "joint.rho2 = NaN"}, "NaN"),
        ({"scale": "huge"}, "/scale"),
        ({"dataset": "nope"}, "No dataset"),
        ({"kind": "guess"}, "Unknown job kind"),
        ({"metadata": "team search"}, "key = value"),
        ({"priority": "11"}, "/priority"),
        ({"minutes": "soon"}, "Invalid number"),
        ({"minutes": "-1"}, "/max_runtime_seconds"),
        ({"kind": "learning_curve", "learning_curve.sizes": "0.1, many"}, "Invalid number"),
        ({"kind": "learning_curve", "learning_curve.sizes": "0.1, 1", "learning_curve.lstm": "4x256"}, "such as 4-256"),
        (
            {"kind": "learning_curve", "learning_curve.sizes": "0.1, 1", "learning_curve.models": ["pretrained"]},
            "Give both or neither",
        ),
        ({"kind": "prune", "prune.levels": "1.5"}, "above 0 and below 1"),
        ({"kind": "prune", "prune.levels": "0.2", "prune.job": "toy"}, "/options/job"),
        ({"kind": "share_tickets", "share_tickets.level": "0.3"}, "/options/others"),
        (
            {"kind": "share_tickets", "share_tickets.others": ["films"], "share_tickets.tickets": "films = 2"},
            "above 0 and below 1",
        ),
    ],
)
def test_invalid_form_keeps_its_values(filled: tuple[Gateway, Contents], data: Any, message: str) -> None:
    gateway, _ = filled
    before = len(gateway.parts.jobs.list_jobs(T, limit=100)[0])
    whole = {"dataset": "tickets", "corpus": "manuals", "seeds": "0, 7", **data}
    answer = signed_in(gateway).post("/ui/submit", data=whole)
    assert (answer.status_code, message in answer.text) == (422, True), answer.text
    names = ("seeds", "overrides", "metadata", "priority", "minutes", "learning_curve.sizes", "prune.levels",
            "share_tickets.tickets")  # fmt: skip
    assert all(value in answer.text for name, value in whole.items() if name in names)
    ticked = {given["value"] for tag, given in Tags(answer.text).tags if tag == "input" and "checked" in given}
    assert ticked >= {*whole.get("learning_curve.models", ()), *whole.get("share_tickets.others", ())}
    assert len(gateway.parts.jobs.list_jobs(T, limit=100)[0]) == before


def test_preview_shows_recipe_and_cost_without_submitting(filled: tuple[Gateway, Contents]) -> None:
    gateway, _ = filled
    before = len(gateway.parts.jobs.list_jobs(T, limit=100)[0])
    answer = signed_in(gateway).post(
        "/ui/submit/preview", data={"dataset": "tickets", "corpus": "manuals", "overrides": "joint.rho2 = 7"}
    )
    assert answer.status_code == 200 and "ρ₂ 7" in answer.text and "4f1c2a9be07d" in answer.text
    assert "10 epochs, at most 700 steps, batch size 32" in answer.text
    assert re.search(r"<dt>FLOPs</dt><dd>[\d.]+ × 10", answer.text) and "built-in" in answer.text
    assert len(gateway.parts.jobs.list_jobs(T, limit=100)[0]) == before


def test_preview_shows_a_range_whose_ends_are_equal_as_one_time(
    filled: tuple[Gateway, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator, ends = filled[0].parts.estimator, {"seconds_at_least": 6_240.1, "seconds_at_most": 6_241.0}
    measured = estimator.estimate
    monkeypatch.setattr(
        estimator, "estimate", lambda job: measured(job).model_copy(update={"seconds": 6_240.5, **ends})
    )
    answer = signed_in(filled[0]).post("/ui/submit/preview", data={"dataset": "tickets", "corpus": "manuals"})
    assert "<dt>time</dt><dd>1 h 44 min</dd>" in answer.text


def test_preview_shows_the_estimate_of_the_api(filled: tuple[Gateway, Contents]) -> None:
    data = {"dataset": "tickets", "corpus": "manuals", "scale": "tiny"}
    shown = " ".join(Tags(signed_in(filled[0]).post("/ui/submit/preview", data=data).text).words.split())
    with filled[0].test_client() as api:
        estimated = api.post("/v1/jobs/estimate", json={**data, "seeds": [0, 1, 2]}).json()
    low, high = duration(estimated["seconds_at_least"]), duration(estimated["seconds_at_most"])
    assert low != high and f"{low} to {high}, {estimated['reasons']['seconds']}" in shown
    assert all(f"{duration(stage['seconds'])}" in shown for stage in estimated["stages"])


def test_preview_of_a_study_counts_its_stages(filled: tuple[Gateway, Contents]) -> None:
    data = {
        "dataset": "tickets",
        "kind": "learning_curve",
        "learning_curve.sizes": "0.1, 1",
        "learning_curve.models": ["encoder"],
        "seeds": "0, 1",
    }
    answer = signed_in(filled[0]).post("/ui/submit/preview", data=data)
    assert answer.status_code == 200, answer.text
    assert "learning curve" in answer.text and "bilstm × 4" in answer.text
    assert "not measured here" in answer.text and "built-in" in answer.text


@pytest.mark.parametrize(("key", "field"), [
    ("finetune.epochs", 'type="number"'), ("joint.enabled", "<option selected>true"), ("finetune.rates", 'value="[]"'),
])  # fmt: skip
def test_recipe_key_shows_its_meaning_and_a_field_of_its_type(
    filled: tuple[Gateway, Contents], key: str, field: str
) -> None:
    browser = signed_in(filled[0])
    assert f"<option>{key}</option>" in browser.get("/ui/submit").text
    answer = browser.post("/ui/submit/key", data={"scale": "quick", "recipe": "fast", "pick": key}).text
    assert field in answer and f'data-override="{key}"' in answer
    assert "has no recipe" in browser.post("/ui/submit/key", data={"scale": "instant", "pick": key}).text
