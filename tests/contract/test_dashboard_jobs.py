"""The dashboard's pages of jobs: list, details and actions, curves, log, comparison."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.contract.dashboard_pages import Tags, signed_in
from tests.contract.filled_dashboard import LABELS, Contents, fill, finish
from tests.contract.gateway import Gateway
from tests.factories import make_resolved, make_spec
from tlm_core.errors import WorkerLost
from tlm_core.jobs.spec import Progress
from tlm_core.jobs.states import State

T = "default"


def test_job_list_shows_states_as_words(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    text = browser.get("/ui/jobs").text
    for state in ("queued", "paused", "running", "succeeded", "failed", "cancelled"):
        assert f'<span class="state {state}">{state}</span>' in text
    assert all(job in text for job in contents.jobs.values())
    only = browser.get("/ui/jobs?state=failed").text
    assert contents.jobs["failed"] in only and contents.jobs["running"] not in only
    part = browser.get("/ui/jobs", headers={"HX-Request": "true"}).text
    assert part.lstrip().startswith('<div id="jobs"') and 'hx-trigger="every 3s"' in part
    assert "hx-trigger" not in browser.get("/ui/jobs?state=failed", headers={"HX-Request": "true"}).text


def test_job_list_is_searched_and_ordered(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, jobs = signed_in(gateway), contents.jobs

    def rows(query: str) -> list[str]:
        return re.findall(r'id="row-(job_\w+)"', browser.get(f"/ui/jobs?{query}").text)

    assert rows("q=films+manuals") == [jobs["hostile"]]
    assert rows(f"q={jobs['alone'].upper()}") == [jobs["alone"]]
    assert rows("sort=score")[:3] == [jobs["succeeded"], jobs["hostile"], jobs["alone"]]
    assert rows("sort=score&state=succeeded&q=tickets") == [jobs["succeeded"], jobs["alone"]]
    assert rows("sort=failures")[0] == jobs["failed"]
    assert browser.get("/ui/jobs?sort=beauty").status_code == 422
    assert "No job contains “zebra”" in browser.get("/ui/jobs?q=zebra").text
    table = Tags(browser.get("/ui/jobs?sort=failures&q=tickets").text)
    assert table.has("th", **{"aria-sort": "descending"}) and table.has("a", href="/ui/jobs?q=tickets&sort=score")
    filters = re.findall(r'href="/ui/jobs\?state=(\w+)"', browser.get("/ui/jobs").text)
    assert filters == ["queued", "running", "paused", "succeeded", "failed", "cancelled"]


def test_job_list_shows_seeds_that_differ_from_the_default(gateway: Gateway) -> None:
    for seeds in ((0,), (7,), (0, 1)):
        gateway.parts.jobs.submit(T, make_spec(seeds=seeds), make_resolved())
    text = signed_in(gateway).get("/ui/jobs").text
    assert re.findall(r"fast, train(.*?)</span>", text) == [", 2 seeds", ", seed 7", ""]


def test_search_states_how_many_jobs_it_does_not_show(
    filled: tuple[Gateway, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = signed_in(filled[0])
    note = "The first 5 of 7 jobs. Narrow the search or select a state to see the others."
    assert "The first" not in browser.get("/ui/jobs?q=tickets").text
    monkeypatch.setattr("services.api.dashboard.jobs_page._SHOWN", 5)
    text = browser.get("/ui/jobs?q=tickets").text
    assert note in text and text.count('id="row-') == 5
    assert "The first" not in browser.get("/ui/jobs?q=tickets&state=succeeded").text


def test_empty_job_list_names_the_first_steps(gateway: Gateway) -> None:
    text = signed_in(gateway).get("/ui/jobs").text
    assert all(f'href="/ui/{page}"' in text for page in ("datasets", "corpora", "submit"))
    assert "Upload a dataset" in text and "No failed jobs" in signed_in(gateway).get("/ui/jobs?state=failed").text


def test_running_job_shows_stage_and_actions(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    job = contents.jobs["running"]
    browser, record = signed_in(gateway), f"tlm:{{{T}}}:job:{job}"
    text = browser.get(f"/ui/jobs/{job}").text
    assert re.search(r'<li class="running" aria-current="step">\s*<span class="name">joint</span>', text)
    words = " ".join(Tags(text).words.split())
    assert "step of joint (seed 0)405 / 900" in words and "rate15,320 tokens/s" in words
    # 55 % of 126 s of the joint stage, and 42 s of the stages after it, of 178 s
    assert "38 % of the job, 1 min 51 s left" in words
    assert f"/ui/jobs/{job}/do/pause" in text and f"/ui/jobs/{job}/do/resume" not in text
    assert "no number; write" not in text
    gateway.client.hset(record, "beats", json.dumps({"main": {"at": time.time() - 600}}))
    words = " ".join(Tags(browser.get(f"/ui/jobs/{job}").text).words.split())
    assert "The workers last reported 10 min" in words and "of the job" in words
    assert "tokens/s" not in words and "left" not in words, "The rate and the time left are of the past."


def test_progress_of_a_finished_stage_disappears(gateway: Gateway) -> None:
    contents = fill(gateway)
    job = gateway.parts.jobs.get(T, contents.jobs["running"])
    progress = Progress(stage="prepare", node="prepare", step=5_320, total=5_724, rate=547, share=0.2, eta_seconds=218)
    gateway.parts.jobs.report(T, job.id, job.attempt, progress=progress)
    words = " ".join(Tags(signed_in(gateway).get(f"/ui/jobs/{job.id}").text).words.split())
    assert "step of prepare" not in words and "5,320" not in words and "547" not in words
    assert "% of the job, 3 min 38 s left" in words


def test_run_time_excludes_waiting_and_pauses(gateway: Gateway) -> None:
    contents = fill(gateway)
    browser, now = signed_in(gateway), time.time()
    for name, text in {
        "paused": "run time 1 min 40 s", "running": "running for 3 h 5 min", "succeeded": "run time 1 min 40 s",
        "queued": "run time –",
    }.items():  # fmt: skip
        begun = {"started_at": now - 50_000} if name != "queued" else {}
        run = {"running_since": now - 11_020} if name == "running" else {}
        gateway.client.hset(f"tlm:{{{T}}}:job:{contents.jobs[name]}", mapping={"ran_seconds": 100.0, **begun, **run})
        words = Tags(browser.get(f"/ui/jobs/{contents.jobs[name]}").text.replace("</dt><dd>", " ")).words
        assert text in words, name


def test_comparison_shows_the_run_time_of_the_job_page(gateway: Gateway) -> None:
    contents, now = fill(gateway), time.time()
    for name, seconds in (("succeeded", 435), ("alone", 14)):
        times = {"ran_seconds": seconds, "started_at": now - 50_000, "finished_at": now - 40_000}
        gateway.client.hset(f"tlm:{{{T}}}:job:{contents.jobs[name]}", mapping=times)
    text = signed_in(gateway).get(f"/ui/compare?id={contents.jobs['succeeded']}&id={contents.jobs['alone']}").text
    assert "run time, without pauses7 min 15 s14 s" in Tags(text).words
    assert "training time, summed over seeds" in text


def test_named_job_is_headed_and_listed_by_its_name(gateway: Gateway) -> None:
    named, _ = gateway.parts.jobs.submit(T, make_spec(dataset="mine", name="first try"), make_resolved())
    other, _ = gateway.parts.jobs.submit(T, make_spec(dataset="mine"), make_resolved())
    browser = signed_in(gateway)
    text = browser.get(f"/ui/jobs/{named.id}").text
    assert "<title>first try queued" in text and '<h1>first try <span class="dim">mine' in text
    assert all(" of first try ·" in browser.get(f"/ui/jobs/{named.id}/{tab}").text for tab in ("results", "log"))
    listed = browser.get("/ui/jobs").text
    assert f'/ui/jobs/{named.id}">first try</a> <span class="dim">mine' in listed
    assert f'/ui/jobs/{other.id}">mine</a> <span class="dim">' in listed
    assert f'/ui/jobs/{named.id}">first try</a>' in browser.get(f"/ui/compare?id={named.id}&id={other.id}").text


def test_stages_that_another_job_computed_are_reused(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled

    def states(name: str) -> dict[str, str]:
        text = signed_in(gateway).get(f"/ui/jobs/{contents.jobs[name]}").text
        return dict(re.findall(r'class="name">(.*?)</span>\s*<span class="word">(.*?)(?: <|</)', text))

    failed, succeeded, cancelled = map(states, ("failed", "succeeded", "cancelled"))
    assert (failed["validate"], failed["finetune"]) == ("done", "not run")
    assert (succeeded["validate"], succeeded["evaluate"]) == ("reused", "done")
    assert cancelled["export"] == "not run" and "waiting" not in cancelled.values()
    assert states("queued")["export"] == "waiting"


def test_overview_of_a_finished_job_names_model_and_score(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, job = signed_in(gateway), contents.jobs["succeeded"]
    text = browser.get(f"/ui/jobs/{job}").text
    assert re.search(r"model\.onnx is the .*: macro-F1 0\.\d+ on test\.", Tags(text).words)
    assert "Finished refit (seed 0)" in text and f'href="/ui/jobs/{job}/results">All results' in text
    assert "All results" not in browser.get(f"/ui/jobs/{contents.jobs['running']}").text


def test_details_of_an_error_appear_once_and_folded(gateway: Gateway) -> None:
    contents = fill(gateway)
    jobs, browser = gateway.parts.jobs, signed_in(gateway)
    job = jobs.get(T, contents.jobs["running"])
    jobs.requeue(job, str(job.owner), WorkerLost("Worker was killed.", details="exit code <137>"), 0)
    text = browser.get(f"/ui/jobs/{job.id}").text
    assert text.count("Worker was killed.") == 2, "in the notice and in its event"
    assert "<dt>interruptions</dt><dd>1</dd>" in text and "<dt>failures</dt>" not in text
    assert ", 1 interruption<" in browser.get("/ui/jobs").text
    assert text.count("exit code &lt;137&gt;") == 1
    assert "<details><summary>Details of the last error</summary>" in text
    assert "exit code" not in browser.get("/ui/jobs").text


def test_live_part_reloads_the_page_on_a_state_change(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, job = signed_in(gateway), contents.jobs["running"]
    same = browser.get(f"/ui/jobs/{job}/live?was=running.joint", headers={"HX-Request": "true"})
    assert (same.status_code, "hx-refresh" in same.headers) == (200, False)
    assert 'hx-swap-oob="outerMorph"' in same.text
    other = browser.get(f"/ui/jobs/{job}/live?was=queued.None", headers={"HX-Request": "true"})
    assert (other.status_code, other.headers["hx-refresh"]) == (204, "true")


def test_actions_change_the_state_of_a_job(gateway: Gateway) -> None:
    contents = fill(gateway)
    browser, job = signed_in(gateway), contents.jobs["paused"]
    assert browser.post(f"/ui/jobs/{job}/do/resume").headers["location"] == f"/ui/jobs/{job}"
    assert gateway.parts.jobs.get(T, job).state is State.QUEUED
    browser.post(f"/ui/jobs/{job}/do/cancel")
    assert gateway.parts.jobs.get(T, job).state is State.CANCELLED
    again = browser.post(f"/ui/jobs/{job}/do/resume")
    assert (again.status_code, "Not possible now" in again.text) == (409, True)
    assert browser.post(f"/ui/jobs/{job}/do/rename").status_code == 404
    once, twice = (browser.post(f"/ui/jobs/{job}/do/retry", data={"key": "k"}).headers["location"] for _ in range(2))
    assert once == twice != f"/ui/jobs/{job}"
    new = gateway.parts.jobs.get(T, once.rsplit("/", 1)[1])
    assert new.origin is not None and (new.origin.job, new.state) == (job, State.QUEUED)
    assert browser.post(f"/ui/jobs/{contents.jobs['succeeded']}/do/retry").status_code == 409
    assert browser.post(f"{once}/do/delete").status_code == 409, "The job has not ended."
    assert browser.post(f"/ui/jobs/{job}/do/delete").headers["location"] == "/ui/jobs"
    assert browser.get(f"/ui/jobs/{job}").status_code == 404
    assert browser.post(f"/ui/datasets/{contents.dataset}/delete").status_code == 409, "Jobs use the dataset."
    browser.post(f"/ui/jobs/{contents.jobs['hostile']}/do/delete")
    assert browser.post(f"/ui/datasets/{contents.hostile_dataset}/delete").headers["location"] == "/ui/datasets"
    assert browser.get(f"/ui/datasets/{contents.hostile_dataset}").status_code == 404


def test_curves_combine_metrics_and_history(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    running = browser.get(f"/ui/jobs/{contents.jobs['running']}/points?stage=joint").json()
    (curve,) = running["curves"]
    assert running["live"] and curve["name"] == "seed 0"
    assert curve["series"]["mlm"]["x"][-1] == 405
    assert max(curve["series"]["learning_rate"]["y"]) == pytest.approx(3e-3, rel=0.1)
    over = browser.get(f"/ui/jobs/{contents.jobs['succeeded']}/points?stage=finetune").json()
    assert [curve["name"] for curve in over["curves"]] == ["seed 0", "seed 1", "seed 2"]
    assert over["curves"][2]["series"]["score"]["x"] == list(range(0, 141, 14))
    assert not over["live"]


def test_curves_of_a_finished_stage_are_complete(gateway: Gateway) -> None:
    contents = fill(gateway)
    job = gateway.parts.jobs.get(T, contents.jobs["running"])
    late = [{"node": "joint.s0", "stage": "joint", "step": n, "mlm": 9.0, "tokens_per_second": 5.0} for n in (895, 900)]
    gateway.client.delete(f"tlm:{{{T}}}:metrics:{job.id}")
    gateway.parts.jobs.report(T, job.id, job.attempt, metrics=late)
    finish(gateway, job, LABELS, skill=0.8)
    (curve,) = signed_in(gateway).get(f"/ui/jobs/{job.id}/points?stage=joint").json()["curves"]
    first = {name: line["x"][0] for name, line in curve["series"].items()}
    validated = {"score": 180, "validation_loss": 180}
    assert first == {"mlm": 5, "task": 20, "learning_rate": 5, "tokens_per_second": 895, **validated}


def test_each_finetuning_rate_has_a_curve(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    changes = {"joint.enabled": False, "selection.selector": "none", "finetune.rates": [1e-3, 1e-4]}
    with gateway.test_client() as api:
        job = api.post("/v1/jobs", json={"dataset": contents.dataset, "seeds": [0, 1], "overrides": changes}).json()[
            "id"
        ]
    browser = signed_in(gateway)
    names = [curve["name"] for curve in browser.get(f"/ui/jobs/{job}/points?stage=finetune").json()["curves"]]
    assert names == [f"seed {seed}, {rate}" for seed in (0, 1) for rate in ("0.001", "0.0001")]
    both = browser.get(f"/ui/compare/points?stage=finetune&id={contents.jobs['succeeded']}&id={job}").json()
    assert [curve["name"] for curve in both["curves"]] == ["A", "B, 0.001", "B, 0.0001"]
    assert [curve["column"] for curve in both["curves"]] == [0, 1, 1]
    assert "finetune.rates" in browser.get(f"/ui/compare?id={contents.jobs['succeeded']}&id={job}").text


def test_curve_has_the_letter_of_its_job_beside_a_job_without_curves(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    with gateway.test_client() as api:
        job = api.post("/v1/jobs", json={"dataset": contents.dataset, "scale": "instant"}).json()["id"]
    path = f"/ui/compare/points?stage=finetune&id={job}&id={contents.jobs['alone']}"
    assert [(curve["name"], curve["column"]) for curve in signed_in(gateway).get(path).json()["curves"]] == [("B", 1)]


def test_log_page_polls_for_new_lines(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser, job = signed_in(gateway), contents.jobs["running"]
    text = browser.get(f"/ui/jobs/{job}/log").text
    after = re.search(r"log/more\?after=([\d-]+)", text)
    assert after and "tokenizer: 8,192 tokens" in text
    gateway.parts.jobs.report(T, job, 1, logs=["one line more"])
    part = browser.get(f"/ui/jobs/{job}/log/more?after={after[1]}", headers={"HX-Request": "true"}).text
    assert "one line more" in part and "tokenizer" not in part and "hx-get" in part


def test_compare_page_shows_differences_and_scores(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    browser = signed_in(gateway)
    ids = f"id={contents.jobs['succeeded']}&id={contents.jobs['alone']}"
    text = browser.get(f"/ui/compare?{ids}").text
    assert "selection.selector" in text and "joint.rho1" not in text
    assert text.count("± ") == 1  # of the encoder of the job with three seeds
    words = " ".join(Tags(text).words.split())
    assert "linear" in words and "model.onnx, seeds 0, 1, 2" in words and "model.onnx, seed 0" in words
    assert re.search(r"against A–(better|worse|not distinguishable)[+-]0\.\d{3} ?95 % interval", words)
    three = Tags(browser.get(f"/ui/compare?{ids}&id={contents.jobs['hostile']}").text).words
    assert "tickets@v1 (" in three and "films@v1 (" in three and not re.search(r"[0-9a-f]{64}", three)
    points = browser.get(f"/ui/compare/points?stage=finetune&{ids}").json()
    assert [curve["name"] for curve in points["curves"]] == ["A", "B"]
    many = "&".join(f"id={job}" for job in contents.jobs.values())
    assert browser.get(f"/ui/compare?{many}").status_code == 422
    assert browser.get("/ui/compare?id=nope").status_code == 404
