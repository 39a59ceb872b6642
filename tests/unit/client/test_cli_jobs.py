"""Job commands: the requests that they send and the output that they print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client.gateway import event_stream, job_summary, job_view, serve, tlm

ESTIMATE = {
    "seconds": 125.0, "flops": 4.1e13, "tokens": 1e6, "memory_bytes": 464_000_000, "disk_bytes": None,
    "gpu_hours": None, "passages": 10_004, "passages_at_most": 13_500,
    "stages": [
        {"stage": "select", "seconds": 0.0, "flops": 0.0, "tokens": 0.0, "basis": "cached", "reason": "already done"},
        *({"stage": stage, "seconds": 100.0, "flops": 4e13, "tokens": 1e6, "basis": "measured",
           "reason": "measured on 3 runs"} for stage in ("joint", "refit_linear")),
    ],
    "reasons": {"gpu_hours": "No finished job yet.", "flops": "counted", "memory_bytes": "counted"},
}  # fmt: skip


def test_estimate_shows_sources_and_unknown_figures() -> None:
    requests: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(json.loads(request.content))
        return httpx.Response(200, json=ESTIMATE)

    arguments = ("estimate", "--dataset", "toy", "--corpus", "docs", "--seed", "1", "--set", "joint.rho2=5")
    result = tlm(handler, *arguments)
    assert result.exit_code == 0, result.output
    assert requests == [{"dataset": "toy", "corpus": "docs", "seeds": [1], "overrides": {"joint.rho2": 5}}]
    passages = "10,004 of at most 13,500"
    for part in ("2:05", "4.10e+13", passages, "GPU hours: unknown", "Disk: unknown", "flops, memory bytes: counted"):
        assert part in result.stdout
    assert result.stdout.count("measured on 3 runs") == 1 and "joint, refit_linear: measured on 3 runs" in result.stdout
    (cached,) = (line.split("│")[1:-1] for line in result.stdout.splitlines() if "│ select" in line)
    assert [cell.strip() for cell in cached] == ["select", "0:00", "cached", "cached"]
    assert json.loads(tlm(handler, *arguments, "--json").stdout)["gpu_hours"] is None


def test_estimate_of_another_kind_has_its_options_and_no_gpu_hours_without_gpus() -> None:
    requests: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(json.loads(request.content))
        return httpx.Response(200, json=ESTIMATE | {"gpu_hours": 0.0})

    result = tlm(handler, "estimate", "--kind", "prune", "--options", '{"job": "job_1"}')
    assert requests == [{"kind": "prune", "options": {"job": "job_1"}}], result.output
    assert "GPU hours" not in result.stdout
    assert tlm(handler, "estimate", "--kind", "prune").exit_code == 2, "Nothing names the data."


def test_time_of_an_estimate_has_its_caveat_once() -> None:
    caveat = "not measured here; jobs that finish here improve the estimate"
    estimate = ESTIMATE | {"seconds_at_least": 60.0, "seconds_at_most": 240.0, "reasons": {"seconds": caveat}}
    result = tlm(lambda _: httpx.Response(200, json=estimate), "estimate", "--dataset", "toy")
    assert f"Time: 1:00 to 4:00, {caveat}" in result.stdout and result.stdout.count("not measured here") == 1
    equal = estimate | {"seconds": 315.2, "seconds_at_least": 315.0, "seconds_at_most": 315.4}
    result = tlm(lambda _: httpx.Response(200, json=equal), "estimate", "--dataset", "toy")
    assert "Time: 5:15\n" in result.stdout


def test_dry_run_submits_nothing() -> None:
    view = job_view()
    dry = {key: view[key] for key in ("spec", "dataset_id", "dataset_digest", "resolved_recipe", "stages")}
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url.query))
        return httpx.Response(200, json={**dry, "corpus_version": "v1", "estimate": ESTIMATE})

    result = tlm(handler, "submit", "--dataset", "toy", "--dry-run")
    assert (result.exit_code, seen) == (0, ["b'dry_run=true'"]), result.output
    assert "2:05" in result.stdout and "job_" not in result.stdout


LINES = [{"id": f"{n}-0", "at": 1.0, "attempt": 1, "line": f"line {n}"} for n in range(1, 4)]


def test_followed_log_continues_after_the_printed_lines() -> None:
    requests: list[tuple[str, str | None]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append((request.url.query.decode(), request.headers.get("Last-Event-ID")))
        if "event-stream" not in request.headers["Accept"]:
            return httpx.Response(200, json={"data": LINES[:2], "has_more": False})
        frames = "".join(f"id: {line['id']}\nevent: line\ndata: {json.dumps(line)}\n\n" for line in LINES[1:])
        return event_stream(frames + 'event: end\ndata: {"state": "succeeded"}\n\n')

    result = tlm(handler, "logs", "job_1", "-f", "--tail", "2")
    assert result.exit_code == 0, result.output
    assert [line.split(" ", 1)[1] for line in result.stdout.splitlines()] == ["line 1", "line 2", "line 3"]
    assert requests == [("tail=2", None), ("", "2-0")]
    assert [json.loads(line)["line"] for line in tlm(handler, "logs", "job_1", "--json").stdout.splitlines()] == [
        "line 1", "line 2",
    ]  # fmt: skip


def test_comparison_shows_differences_and_missing_reports() -> None:
    scores = {"test": {"macro_f1": 0.5, "micro_f1": 0.6, "accuracy": None}}
    series = {"node": "joint.s0", "name": "mlm", "total": 3, "steps": [1, 2, 3], "at": [1, 2, 3], "values": [3, 2, 1]}
    norms = {**series, "name": "gradient_norm"}
    body = {
        "jobs": [job_view(), job_view(id="job_2", name="longer")],
        "differences": [{"key": "joint.rho2", "values": [5, None]}],
        "outcomes": [
            {"job": "job_1", "metric": "macro_f1", "mean": scores, "spread": {"test": {"macro_f1": 0.01}},
             "cost": {"total": {"flops": 2e12, "tokens": 5.0, "seconds": 7.0}}},
            {"job": "job_2", "reason": "it has not finished"},
        ],
        "verdicts": [{"job": "job_2", "verdict": "worse", "value": -0.02, "low": -0.034, "high": -0.006}],
        "curves": [{"job": "job_1", "series": [series, norms]}, {"job": "job_2", "series": []}],
    }  # fmt: skip
    linear = {"name": "linear", "mean": {"macro_f1": 0.45}, "spread": {"macro_f1": 0.02}}
    body["outcomes"][0]["models"] = [linear, {**linear, "name": "combined", "file": "model.onnx, seed 1"}]
    result = tlm(serve({"GET /v1/jobs/compare": body}), "compare", "job_1", "job_2")
    assert result.exit_code == 0, result.output
    for part in (
        "longer",
        "joint.rho2",
        "0.500 ± 0.010",
        "0.600",
        "n/a",
        "2e+12",
        "█▅▁ 1",
        "job_2: it has not finished",
        "worse: -0.020 (95 % interval -0.034 to -0.006)",
        "0.450 ± 0.020 (model.onnx, seed 1)",
    ):
        assert part in result.stdout, part
    assert "gradient_norm" not in result.stdout


def test_comparison_shows_readable_costs_and_curves_in_order() -> None:
    names = ("joint.s1", "joint.s10", "joint.s0", "finetune.s2", "finetune.s0")
    series = [{"node": n, "name": "mlm", "total": 1, "steps": [1], "at": [1], "values": [1]} for n in names]
    cost = {"total": {"flops": 2e12, "tokens": 2_185_380.0, "seconds": 1_062.0}}
    jobs = [job_view(), job_view(id="job_2", name="longer")]
    outcomes = [{"job": job["id"], "reason": "no scores", "cost": cost} for job in jobs]
    body = {"jobs": jobs, "differences": [{"key": "seeds", "values": [1, 2]}], "outcomes": outcomes, "verdicts": [],
            "curves": [{"job": job["id"], "series": series} for job in jobs]}  # fmt: skip
    shown = tlm(serve({"GET /v1/jobs/compare": body}), "compare", "job_1", "job_2").stdout
    assert "2,185,380" in shown and "17.7 minutes" in shown and "toy on docs" in shown
    places = [
        shown.index(f"{node} mlm") for node in ("joint.s0", "joint.s1", "joint.s10", "finetune.s0", "finetune.s2")
    ]
    assert places == sorted(places)


def test_comparison_shows_the_names_of_jobs_without_markup_and_control_characters() -> None:
    jobs = [job_view(name="run [/old]"), job_view(id="job_2", name="[red]\x9b2J")]
    body = {"jobs": jobs, "differences": [{"key": "seeds", "values": [1, 2]}], "outcomes": [], "verdicts": [],
            "curves": []}  # fmt: skip
    shown = tlm(serve({"GET /v1/jobs/compare": body}), "compare", "job_1", "job_2").stdout
    assert "run [/old]" in shown and "[red]\ufffd2J" in shown


def test_comparison_omits_empty_tables() -> None:
    jobs = [job_view(), job_view(id="job_2")]
    outcomes = [{"job": job["id"], "reason": "it has not finished"} for job in jobs]
    body = {"jobs": jobs, "differences": [], "outcomes": outcomes, "verdicts": [],
            "curves": [{"job": job["id"], "series": []} for job in jobs]}  # fmt: skip
    shown = tlm(serve({"GET /v1/jobs/compare": body}), "compare", "job_1", "job_2").stdout
    assert "No differences." in shown.splitlines() and "Test scores of the returned" in shown
    assert not [text for text in ("Nothing found", "Curves", "all models") if text in shown]


def test_predict_names_the_model_and_marks_abstentions() -> None:
    sent: list[Any] = []
    note = "The job is running. This is its linear model; the final model will replace it."
    rows = [{"label": "good", "probability": 0.9}, {"label": None, "probability": 0.6, "abstained": True}]

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"data": rows, "model": {"name": "linear", "final": False, "note": note}})

    result = tlm(handler, "predict", "job_1", "a film", "a movie", "--min-confidence", "0.8")
    assert result.exit_code == 0, result.output
    assert sent == [{"texts": ["a film", "a movie"], "min_confidence": 0.8}]
    assert f"Model: linear. {note}" in result.stdout and "(none)" in result.stdout
    printed = json.loads(tlm(handler, "predict", "job_1", "x", "y", "--json").stdout)
    assert printed["model"]["name"] == "linear" and printed["data"][1]["abstained"]
    assert tlm(handler, "predict", "job_1", "x", "--min-confidence", "2").exit_code == 2


def test_predictions_replace_a_file_only_by_force(tmp_path: Path) -> None:
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\na film\n", encoding="utf-8")
    out.write_text("precious", encoding="utf-8")
    answer = {"data": [{"label": "good", "probability": 0.9}], "model": {"name": "linear", "final": True}}
    info = {"version": "1", "scales": ["instant"], "recipes": ["fast"], "max_upload_bytes": 1_000}
    serving = serve({
        "GET /v1/info": info | {"max_json_bytes": 1_000_000, "max_predict_texts": 256},
        "GET /v1/jobs/job_1": job_view(), "GET /v1/datasets/ds_1/report": {},
        "POST /v1/models/job_1/predict": answer,
    })  # fmt: skip
    arguments = ("predict", "job_1", "--file", str(source), "--out", str(out))
    refused = tlm(serving, *arguments)
    assert (refused.exit_code, out.read_text()) == (1, "precious")
    assert "exists. Name a new file, or replace this one with --force." in refused.stderr
    replaced = tlm(serving, *arguments, "--force")
    assert (replaced.exit_code, out.read_text()) == (0, "text,prediction,probability\na film,good,0.9\n"), (
        replaced.output
    )


def test_clone_sends_only_changes() -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.path, json.loads(request.content or b"null")))
        return httpx.Response(202, json=job_view(id="job_2"))

    result = tlm(handler, "clone", "job_1", "--seed", "3", "--set", "joint.rho2=7", "--priority", "5")
    assert result.exit_code == 0 and "job_2 is queued, a clone of job_1" in result.stdout
    assert tlm(handler, "retry", "job_1").exit_code == 0
    changes = {"seeds": [3], "overrides": {"joint.rho2": 7}, "priority": 5}
    assert sent == [("/v1/jobs/job_1/clone", changes), ("/v1/jobs/job_1/retry", None)]


@pytest.mark.parametrize("command", [("submit", "--dataset", "toy"), ("clone", "job_1")])
def test_limits_of_a_job_are_sent(command: tuple[str, ...]) -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job_view())

    assert tlm(handler, *command, "--max-attempts", "5", "--max-runtime", "60").exit_code == 0
    assert [(body["max_attempts"], body["max_runtime_seconds"]) for body in sent] == [(5, 60)]


def test_clone_of_another_kind_sends_kind_and_options() -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=job_view(spec={"dataset": "toy", "kind": "prune"}))
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job_view(id="job_2"))

    options = '{"levels": [0.2]}'
    for arguments in (("--kind", "prune"), ("--kind", "prune", "--options", options), ("--options", options)):
        result = tlm(handler, "clone", "job_1", *arguments)
        assert result.exit_code == 0, result.output
    assert sent == [{"kind": "prune"}, {"kind": "prune", "options": {"levels": [0.2]}}, {"options": {"levels": [0.2]}}]


def test_clone_accepts_the_alias_of_a_source_job() -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v1/models"):
            facts = dict.fromkeys(("name", "corpus", "metric", "score", "finished_at"))
            model = {"job": "job_7", "aliases": ["toy@production"], "dataset": "toy", "scale": "quick", **facts}
            return httpx.Response(200, json=model)
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job_view(id="job_2"))

    result = tlm(handler, "clone", "job_1", "--kind", "prune", "--options", '{"job": "toy@production"}')
    assert (result.exit_code, sent) == (0, [{"kind": "prune", "options": {"job": "job_7"}}]), result.output


def test_pruning_a_job_sends_only_the_given_fields() -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job_view())

    prune = ("submit", "--kind", "prune", "--options", '{"job": "job_1"}')
    assert tlm(handler, *prune, "--priority", "1").exit_code == 0
    assert tlm(handler, *prune, "--seed", "0", "--scale", "tiny").exit_code == 0, "the gateway rejects it"
    fields = {"kind": "prune", "options": {"job": "job_1"}}
    assert sent == [{**fields, "priority": 1}, {**fields, "seeds": [0], "scale": "tiny"}]
    assert tlm(handler, "submit", "--kind", "prune", "--options", '{"levels": [0.2]}').exit_code == 2


def test_ticket_mask_file_is_sent_as_its_mask(tmp_path: Path) -> None:
    sent: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job_view())

    def submit(ticket: str) -> Any:
        options = {"others": ["b"], "tickets": {"toy": 0.3, "b": ticket}}
        arguments = ("--dataset", "toy", "--kind", "share_tickets", "--options", json.dumps(options))
        return tlm(handler, "submit", *arguments)

    mask, other = {"heads": [[True, False], [True, True]], "blocks": [True, False]}, tmp_path / "other.json"
    (tmp_path / "mask.json").write_text(json.dumps(mask))
    assert submit(str(tmp_path / "mask.json")).exit_code == 0
    assert submit("job_1").exit_code == 0
    assert [body["options"]["tickets"] for body in sent] == [{"toy": 0.3, "b": mask}, {"toy": 0.3, "b": "job_1"}]
    for content in ("[1]", '{"heads": [[0]], "blocks": [1]}', "{"):
        other.write_text(content)
        result = submit(str(other))
        assert result.exit_code == 5 and "Invalid ticket of 'b'" in result.stderr, result.output
    assert submit(str(tmp_path / "none.json")).exit_code == 5 and len(sent) == 2


def test_job_deletion_needs_confirmation() -> None:
    requests: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request.method)
        return httpx.Response(204)

    unanswered = tlm(handler, "delete", "job_1")
    assert unanswered.exit_code == 1 and "stdin has ended. Answer y, or add --yes." in unanswered.stderr
    assert requests == []
    assert tlm(handler, "delete", "job_1", "--yes").exit_code == 0
    assert requests == ["DELETE"]


def test_job_list_sends_its_filters() -> None:
    requests: list[list[tuple[str, str]]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request.url.params.multi_items())
        return httpx.Response(200, json={"data": [], "has_more": False})

    arguments = ("--state", "failed", "--dataset", "toy", "--label", "a=b", "--label", "c=d=e", "--kind", "train")
    assert tlm(handler, "jobs", *arguments).exit_code == 0
    assert set(requests[0]) >= {
        ("state", "failed"), ("dataset", "toy"), ("label", "a=b"), ("label", "c=d=e"), ("kind", "train"),
    }  # fmt: skip


def test_empty_lists_have_no_note_about_their_rows() -> None:
    body = {"facts": {}, "data": [], "total": 0, "has_more": False, "neighbors": True}
    gateway = serve({"GET /v1/jobs/job_1/suspects": body, "GET /v1/jobs/job_1/selection": body})
    assert tlm(gateway, "suspects", "job_1").stdout == "No row has a more probable label.\n"
    assert tlm(gateway, "why", "job_1", "zzzqqq").stdout == "No passage matches.\n"


def test_jobs_and_models_describe_their_data_alike() -> None:
    model = {"job": "job_1", "name": None, "aliases": [], "dataset": "toy", "corpus": "docs", "scale": "tiny",
             "metric": None, "score": None, "finished_at": None}  # fmt: skip
    for path, entry in (("jobs", job_summary()), ("models", model)):
        for corpus, words in (("docs", "toy on docs"), (None, "toy")):
            body = {"data": [{**entry, "corpus": corpus}], "has_more": False}
            shown = tlm(serve({f"GET /v1/{path}": body}), path).stdout
            assert words in [cell.strip() for cell in shown.split("│")], path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "job_1"), "Give two to ten jobs."),
        (("predict", "job_1", "--file", __file__), "--file needs --out, the file to write."),
        (("predict", "job_1"), "Give either texts, or a file with --file."),
        (("predict", "job_1", "x", "--out", "out.csv"), "--out needs --file."),
        (("predict", "job_1", "x", "--force"), "--force needs --file."),
        (("predict", "job_1", "x", "--text-column", "body"), "--text-column needs --file."),
        (("predict", "job_1", "x", "--pair-column", "body"), "--pair-column needs --file."),
        (("predict", "job_1", "--file", __file__, "--out", "x", "--pair", "y"), "--pair does not work with --file"),
        (("submit", "--dataset", "toy", "--kind", "prun"), "kind: Unknown job kind 'prun'. Valid kinds:"),
        (("submit", "--dataset", "toy", "--scale", "big"), "Invalid job: scale: must be 'instant', 'quick', 'tiny'"),
        (("jobs", "--state", "done"), "Invalid value for '--state': 'done' is not one of 'queued',"),
        (("recipe", "keys", "epochz", "lr"), "No recipe key or meaning contains epochz and lr."),
        (("recipe", "keys", "finetune.epochs"), "Values of the recipe fast at the scale tiny"),
        (("compare", *["job_1"] * 11), "Give two to ten jobs."),
        (("compare", "job_1", "job_1"), "'job_1' and 'job_1' mean the same job. Name each job once."),
        (("predict", "job_1", "--file", "/nope.csv", "--out", "o.csv"), "The file /nope.csv does not exist."),
        (("submit", "--kind", "prune"), """Name a dataset, or a job that succeeded: --options '{"job": "ID"}'."""),
        (("show", ""), "The job reference is empty. Give an id, a name, an alias or @latest."),
    ],
)
def test_wrong_arguments_are_explained(arguments: tuple[str, ...], message: str) -> None:
    result = tlm(serve({}), *arguments)
    assert message in " ".join(result.output.split()) and "Value error" not in result.output


@pytest.mark.parametrize("command", [("jobs",), ("models",), ("dataset", "list"), ("corpus", "list")])
def test_empty_list_names_the_command_that_fills_it(command: tuple[str, ...]) -> None:
    result = tlm(lambda _: httpx.Response(200, json={"data": [], "has_more": False}), *command)
    assert result.stdout.startswith("No ") and "`tlm " in result.stdout


def test_list_of_jobs_without_a_match_does_not_claim_that_there_are_none() -> None:
    result = tlm(lambda _: httpx.Response(200, json={"data": [], "has_more": False}), "jobs", "--search", "zzz")
    assert result.stdout == "No job matches. `tlm jobs` lists all.\n"


def test_log_shows_no_control_characters() -> None:
    page = {"data": [LINES[0] | {"line": "a\tb \x1b]52;c;eA==\x07"}], "has_more": False}
    result = tlm(lambda _: httpx.Response(200, json=page), "logs", "job_1")
    assert result.stdout.endswith("a\tb \ufffd]52;c;eA==\ufffd\n")


def test_predicted_values_have_six_significant_digits() -> None:
    rows = [{"label": "price", "value": value} for value in (3.14159265, 0.0001234567, 100000009.474)]
    answer = {"data": rows, "model": {"name": "linear", "final": True}}
    shown = tlm(lambda _: httpx.Response(200, json=answer), "predict", "job_1", "a", "b", "c").stdout
    assert all(value in shown.split() for value in ("3.14159", "0.000123457", "100000009")), shown
