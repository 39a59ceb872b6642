"""`tlm submit` and `tlm watch`: the requests, the progress and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client.gateway import end, event, event_stream, job_view, problem, report, serve, tlm, unreachable


def test_submit_sends_the_given_options() -> None:
    sent: dict[str, Any] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        sent.update(json.loads(request.content))
        return httpx.Response(202, json=job_view())

    result = tlm(
        handler, "submit", "--dataset", "toy", "--corpus", "docs@v2", "--scale", "small", "--seed", "1", "--seed", "2",
        "--set", "joint.rho2=5", "--set", "tokenizer.source=hub:org/tok", "--workers", "2", "--label", "team=search",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["id"] == "job_1"
    assert sent == {
        "dataset": "toy", "corpus": "docs@v2", "scale": "small", "seeds": [1, 2], "workers": 2,
        "overrides": {"joint.rho2": 5, "tokenizer.source": "hub:org/tok"}, "metadata": {"team": "search"},
    }  # fmt: skip


def test_submit_without_corpus_leaves_the_selector_to_the_service() -> None:
    sent: dict[str, Any] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        sent.update(json.loads(request.content))
        return httpx.Response(202, json=job_view(corpus=None))

    assert tlm(handler, "submit", "--dataset", "toy").exit_code == 0
    assert sent == {"dataset": "toy"}


def test_submit_reads_kind_options_from_json_or_a_file(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job_view())

    (tmp_path / "options.json").write_text('{"levels": [0.2, 0.4]}')
    for options in ('{"levels": [0.2, 0.4]}', str(tmp_path / "options.json")):
        result = tlm(handler, "submit", "--dataset", "toy", "--kind", "prune", "--options", options)
        assert result.exit_code == 0, result.output
    assert [(body["kind"], body["options"]["levels"]) for body in sent] == [("prune", [0.2, 0.4])] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kind", "prune", "--options", "no/such/file"],
        ["--kind", "prune", "--options", '{"levels": [2]}'],
        ["--kind", "gigantic"],
        ["--scale", "gigantic"],
        ["--set", "joint.rho2"],
        ["--set", "joint.rho2=" + "[" * 9_999],
        ["--seed", "0"] * 21,
        ["--label", "team=a", "--label", "team=b"],
    ],
)
def test_invalid_job_is_rejected_before_sending(arguments: list[str]) -> None:
    result = tlm(unreachable, "submit", "--dataset", "toy", *arguments)
    assert result.exit_code == 5, result.output


def test_watch_shows_progress_and_scores() -> None:
    stream = event(1, "job.claimed") + 'event: progress\ndata: {"stage":"joint","node":"joint.s0","step":5,"total":10,'
    stream += (
        '"rate":2.5,"unit":"steps","stage_eta_seconds":2,"share":0.3,"eta_seconds":62,"nodes_done":3,"nodes_total":8}\n\n'
        + end()
    )
    answers = {
        "GET /v1/jobs/job_1/events": event_stream(stream),
        "GET /v1/jobs/job_1": job_view(state="succeeded", finished_at=70.0),
        "GET /v1/jobs/job_1/report": report(),
    }
    result = tlm(serve(answers), "watch", "job_1")
    assert result.exit_code == 0, result.output
    assert "joint.s0  30% 5/10  2.5 steps/s  1:02 left  stage 4 of 8" in result.stderr
    assert "succeeded after 1:09" in result.stdout and "1.00e+12 FLOPs" in result.stdout
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if line.startswith("│")}
    assert [name for name in rows if name] == ["majority", "linear", "encoder", "combined"]
    assert "0.400" in rows["linear"] and "0.500" in rows["combined"] and "model.onnx, seed 3" in rows["combined"]
    file = "model.onnx is the encoder of seed 3 combined with the linear model: macro-F1 0.5000 on test."
    assert file in result.stdout and "better than the linear model" in result.stdout


@pytest.mark.parametrize(("kind", "offered"), [("train", True), ("share_tickets", False)])
def test_watch_offers_a_download_only_for_kinds_with_a_model(kind: str, offered: bool) -> None:
    spec = {"dataset": "toy", "kind": kind} | ({"options": {"others": ["b"]}} if kind != "train" else {})
    answers = {
        "GET /v1/jobs/job_1/events": event_stream(end()),
        "GET /v1/jobs/job_1": job_view(state="succeeded", finished_at=70.0, spec=spec),
        "GET /v1/jobs/job_1/report": report(),
    }
    result = tlm(serve(answers), "watch", "job_1")
    assert result.exit_code == 0 and ("tlm download" in result.stdout) is offered, result.output


def test_watch_of_a_failed_job_exits_1() -> None:
    answers = {
        "GET /v1/jobs/job_1/events": event_stream(end("failed")),
        "GET /v1/jobs/job_1": job_view(state="failed", error={"code": "out_of_memory", "message": "does not fit"}),
    }
    result = tlm(serve(answers), "watch", "job_1")
    assert result.exit_code == 1
    assert "does not fit" in result.stdout


def test_watch_json_prints_one_value_per_line() -> None:
    answers = {
        "GET /v1/jobs/job_1/events": event_stream(event(1) + end("cancelled")),
        "GET /v1/jobs/job_1": job_view(state="cancelled"),
    }
    result = tlm(serve(answers), "watch", "job_1", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["event"]["seq"] == 1
    assert lines[1]["job"]["state"] == "cancelled"
    assert result.exit_code == 1


def test_ctrl_c_in_watch_does_not_stop_the_job() -> None:
    methods = []

    def handler(request: httpx.Request) -> httpx.Response:
        methods.append(request.method)
        raise KeyboardInterrupt

    result = tlm(handler, "watch", "job_1")
    assert result.exit_code == 130
    assert "tlm watch job_1" in result.stderr
    assert methods == ["GET"]


def test_watch_continues_without_the_place_in_the_queue() -> None:
    answers = [problem(500, "error", "Internal error."), httpx.Response(200, json=job_view(state="cancelled"))]

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return event_stream(event(1, "job.requeued") + end())
        return answers.pop(0)

    result = tlm(handler, "watch", "job_1")
    assert (result.stdout, answers) == ("job_1 is cancelled\n", []), result.output
