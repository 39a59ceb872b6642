"""The `tlm` command against a canned gateway: output, streams and exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from typer.testing import CliRunner, Result

from tests.unit.client.gateway import (
    URL,
    FileServer,
    Handler,
    dataset_view,
    end,
    event,
    event_stream,
    job_summary,
    job_view,
    load_view,
    problem,
    report,
)
from tlm_client.__main__ import main
from tlm_client.cli import app
from tlm_client.console import Session
from tlm_client.profiles import Profile, save_profiles
from tlm_client.stack.folder import StackFolder, StackState
from tlm_core.training.recipe import Scale

DATA_ERROR = {"code": "null_text", "message": "there is no text", "split": "train", "row": 7, "column": "text"}


def tlm(handler: Handler, *arguments: str, **over: Any) -> Result:
    session = Session(**{"url": URL, "token": "secret", "transport": httpx.MockTransport(handler), **over})
    return CliRunner().invoke(app, list(arguments), obj=session)


def stack_state(url: str) -> StackState:
    started_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return StackState(state="ready", pid=1, url=url, started_at=started_at)


def serve(answers: dict[str, Any]) -> Handler:
    """Return a handler that answers `METHOD /path` with a response or with JSON."""

    def handler(request: httpx.Request) -> httpx.Response:
        answer = answers[f"{request.method} {request.url.path}"]
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    return handler


def test_option_of_the_gateway_after_the_command_is_explained() -> None:
    result = tlm(unreachable, "jobs", "--url", URL)
    assert (result.exit_code, "--url goes before the command: tlm --url … COMMAND" in result.stderr) == (2, True)


def test_help_of_submit_names_every_scale() -> None:
    words = " ".join(tlm(unreachable, "submit", "--help").output.split())
    assert ", ".join(get_args(Scale)) in words


def unreachable(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(503, "store_unavailable", "Redis does not answer."), 3),
        (problem(404, "not_found", "No job 'job_9'."), 4),
        (problem(422, "invalid_request", "Invalid."), 5),
        (problem(409, "illegal_transition", "The job has ended."), 1),
        (problem(500, "error", "Internal error."), 1),
    ],
)
def test_error_class_sets_the_exit_code(answer: httpx.Response, code: int) -> None:
    result = tlm(lambda _: answer, "cancel", "job_9")
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert "error: " in result.stderr and result.stdout == ""


def test_unreachable_gateway_exits_3_with_a_hint() -> None:
    result = tlm(unreachable, "cancel", "job_1")
    assert result.exit_code == 3
    assert "tlm up" in result.stderr


def test_missing_url_and_stack_exits_3_with_a_hint(tmp_path: Path) -> None:
    result = tlm(unreachable, "jobs", url=None, data_dir=tmp_path)
    assert result.exit_code == 3
    assert "tlm up" in result.stderr and "TLM_URL" in result.stderr


def test_wrong_usage_exits_2() -> None:
    assert tlm(unreachable, "submit").exit_code == 2
    assert tlm(unreachable, "no-such-command").exit_code == 2


def test_ctrl_c_during_imports_exits_130() -> None:
    def load() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_info:
        main(load)
    assert exit_info.value.code == 130


@pytest.mark.parametrize("arguments", [["delete", "job_1"], ["profile", "add", "lab", "https://x"]])
def test_ctrl_c_at_a_prompt_exits_130_but_no_exits_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    session = Session(url=URL, token="secret", profiles=tmp_path / "profiles.toml")
    assert CliRunner().invoke(app, ["delete", "job_1"], obj=session, input="n\n").exit_code == 1
    keyboard = io.StringIO()
    monkeypatch.setattr(keyboard, "readline", interrupt)
    monkeypatch.setattr("sys.stdin", keyboard)
    monkeypatch.setattr("getpass.getpass", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        app(arguments, obj=session)
    assert exit_info.value.code == 130


def test_module_runs_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tlm_client", "--version"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, f"tlm {version('tlm-service')}\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_has_every_text_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    profiles = tmp_path / "tlm" / "profiles.toml"
    save_profiles(profiles, {"lab": Profile(url="https://łé", token="t")})
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "tlm_client", "profile", "list"]
    shown = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    assert ("https://łé" if encoding == "utf-8" else r"https://\u0142") in shown.decode(encoding)
    printed = subprocess.run([*command, "--json"], capture_output=True, check=True, env=environment).stdout
    assert json.loads(printed) == [{"name": "lab", "url": "https://łé"}]


def test_full_disk_behind_stdout_is_an_error_without_a_traceback() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tlm_client", "--version"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: Cannot write the output") and result.stderr.count("\n") == 1


def test_version_option_needs_no_command() -> None:
    result = tlm(unreachable, "--version")
    assert (result.exit_code, result.stdout) == (0, f"tlm {version('tlm-service')}\n")


def test_json_error_is_printed_once_to_stderr() -> None:
    result = tlm(lambda _: problem(404, "not_found", "No job 'job_9'."), "show", "job_9", "--json")
    assert json.loads(result.stderr)["error"]["code"] == "not_found"
    assert (result.stdout, result.exit_code) == ("", 4)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["clone", "job_1", "--max-runtime", "nan"], "float values"),
        (["predict", "job_1", "\udcff"], "surrogates"),
        (["corpus", "search", "docs", "\udcff"], "surrogates"),
        (["jobs", "--search", "\udcff"], "surrogates"),
        (["show", "\udcff"], "surrogates"),
    ],
)
def test_argument_that_no_request_can_contain_exits_5(arguments: list[str], reason: str) -> None:
    result = tlm(unreachable, *arguments)
    assert result.exit_code == 5
    assert re.search(rf"Cannot encode the request: .*{reason}", result.stderr)


def test_json_of_jobs_has_their_kinds_and_rfc_3339_times() -> None:
    page = {"data": [job_summary(kind="prune")], "has_more": False}
    (job,) = json.loads(tlm(lambda _: httpx.Response(200, json=page), "jobs", "--json").stdout)
    assert (job["kind"], job["created_at"]) == ("prune", "1970-01-01T00:00:01Z")


def test_each_data_error_is_printed_once(tmp_path: Path) -> None:
    file = tmp_path / "toy.csv"
    file.write_text("text,label\n", encoding="utf-8")
    message = "Row {} of toy.csv, column 'text', is null."
    data_errors = [{**DATA_ERROR, "row": row, "message": message.format(row)} for row in range(1, 31)]
    answer = problem(422, "invalid_dataset", f"30 data errors: {message.format(1)}", errors=data_errors)
    result = tlm(lambda _: answer, "dataset", "add", "toy", str(file))
    assert result.exit_code == 5
    assert result.stderr.splitlines()[:2] == [
        "error: 30 data errors: Row 1 of toy.csv, column 'text', is null.",
        "  Row 2 of toy.csv, column 'text', is null.",
    ]
    assert "9 more errors. Use --json to print them. Of errors with the same code, the service lists" in result.stderr


def test_invalid_field_of_the_message_is_not_repeated() -> None:
    errors = [{"code": "missing", "message": "is required", "in": "body", "pointer": f"/{name}"} for name in "ab"]
    answer = problem(422, "invalid_request", "/a: is required", errors=errors)
    assert tlm(lambda _: answer, "dataset", "list").stderr.splitlines()[1:] == ["  /b: is required"]


def test_empty_list_says_what_adds_an_entry() -> None:
    result = tlm(serve({"GET /v1/webhooks": {"data": [], "has_more": False}}), "webhook", "list")
    assert (result.exit_code, result.stdout) == (0, "No webhooks. Add one with: tlm webhook add URL\n")


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


def test_markup_from_the_gateway_is_printed_as_text() -> None:
    hits = [{"id": "1", "score": 1.0, "source": "[red]x[/red]", "text": "[bold]hi[/bold] <script>"}]
    result = tlm(
        serve({"POST /v1/corpora/docs/search": {"version": "v", "hits": hits}}), "corpus", "search", "docs", "q"
    )
    assert "[red]x[/red]" in result.stdout and "[bold]hi[/bold] <script>" in result.stdout


CLIPBOARD = "\x1b]52;c;eA==\x07"


def test_control_characters_from_the_gateway_are_replaced() -> None:
    hits = [{"id": "1", "score": 1.0, "source": CLIPBOARD, "text": f"query {CLIPBOARD} \x9b \x7f"}]
    handler = serve({"POST /v1/corpora/docs/search": {"version": "v", "hits": hits}})
    shown = tlm(handler, "corpus", "search", "docs", "query").stdout
    assert "\ufffd]52;c;eA==\ufffd" in shown and not re.search(r"[^\n -~\xa0-\uffff]", shown)
    as_json = tlm(handler, "corpus", "search", "docs", "query", "--json").stdout
    assert json.loads(as_json)[0]["source"] == CLIPBOARD


def test_control_characters_in_errors_are_replaced() -> None:
    answer = problem(422, "invalid_request", f"Invalid{CLIPBOARD}.", errors=[{"message": CLIPBOARD, "pointer": "/a"}])
    assert "\x1b" not in tlm(lambda _: answer, "cancel", "job_9").stderr


def test_corpus_deletion_needs_confirmation_and_a_valid_version() -> None:
    requests: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(f"{request.method} {request.url.path}")
        return httpx.Response(204)

    assert tlm(handler, "corpus", "delete", "docs").exit_code == 1
    for result in (tlm(handler, "corpus", verb, "docs@") for verb in ("delete", "refused")):
        assert (result.exit_code, "has no version after" in result.stderr) == (5, True), result.output
    assert requests == []
    assert tlm(handler, "corpus", "delete", "docs@v1", "--yes").stdout == "Deleted version v1 of corpus 'docs'\n"
    assert tlm(handler, "corpus", "delete", "docs", "-y").stdout == "Deleted corpus 'docs'\n"
    assert requests == ["DELETE /v1/corpora/docs/versions/v1", "DELETE /v1/corpora/docs"]


def upload(state: str, name: str = "load_1") -> dict[str, Any]:
    return load_view(id=name, state=state)


def test_corpus_cancel_selects_the_active_upload_by_default() -> None:
    corpus: dict[str, Any] = {"name": "docs", "version": None, "versions": []}
    corpus["loads"] = [upload("indexing", "load_2"), upload("ready")]
    answers = {
        "GET /v1/corpora/docs": corpus,
        "POST /v1/corpora/docs/loads/load_2/cancel": upload("cancelling", "load_2"),
        "POST /v1/corpora/docs/loads/load_1/cancel": upload("cancelled"),
    }
    assert tlm(serve(answers), "corpus", "cancel", "docs").stdout == "load_2 of corpus 'docs' is cancelling\n"
    assert "load_1 of corpus 'docs' is cancelled" in tlm(serve(answers), "corpus", "cancel", "docs", "load_1").stdout
    corpus["loads"] = [upload("ready")]
    result = tlm(serve(answers), "corpus", "cancel", "docs")
    assert (result.exit_code, result.stdout) == (5, "") and "'docs' has no active load" in result.stderr


def test_waiting_for_a_cancelled_upload_fails(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words about a thing that this file describes. " * 9, encoding="utf-8")
    answers = {"POST /v1/corpora": upload("queued"), "GET /v1/corpora/docs/loads/load_1": upload("cancelled")}
    result = tlm(serve(answers), "corpus", "add", "docs", str(tmp_path / "a.txt"))
    assert result.exit_code == 1
    assert "was cancelled" in result.stderr


def test_download_writes_and_lists_the_files(tmp_path: Path) -> None:
    result = tlm(FileServer(b"weights" * 1000), "download", "job_1", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"] == [str(tmp_path / "out" / "model" / "model.safetensors")]
    again = tlm(FileServer(b"weights" * 1000), "download", "job_1", str(tmp_path / "out"))
    assert again.stderr == "downloading model/model.safetensors 100% already complete\n"


def test_dataset_folder_is_uploaded_by_split(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "x", "label": "y"}\n', encoding="utf-8")
    fields = []

    def handler(request: httpx.Request) -> httpx.Response:
        body = request.read()
        fields.extend(f for f in (b"train", b"validation", b"test", b"file") if b'name="%s"; filename' % f in body)
        return added_dataset()

    result = tlm(handler, "dataset", "add", "toy", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert fields == [b"train", b"validation", b"test"]
    assert "note: n" in result.stdout
    assert result.stderr == ""


def added_dataset() -> httpx.Response:
    """Return the response to an accepted dataset."""
    report = {"labels": [{"label": "y", "train": 1}], "notes": ["n"]}
    return httpx.Response(201, json=dataset_view(report=report))


def test_shown_dataset_of_a_regression_has_targets() -> None:
    report = {"labels": [], "targets": {"train": {"min": 0.0, "max": 4.75, "mean": 2.3749999}}}
    answers = {"GET /v1/datasets/toy": dataset_view(), "GET /v1/datasets/ds_1/report": report}
    shown = tlm(serve(answers), "dataset", "show", "toy").stdout
    assert re.search(r"targets +. min +. max +. mean", shown) and re.search(r"train +. 0 +. 4.75 +. 2.375 ", shown)
    assert "Nothing found." not in shown


def test_equal_version_of_a_dataset_is_reported(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    versions = [
        dataset_view(id=f"ds_{number}", version=number, digest=digest, options=options)
        for number, digest, options in ((4, "d", {}), (3, "d", {"metric": "accuracy"}), (2, "e", {}), (1, "d", {}))
    ]
    answers = {
        "POST /v1/datasets": httpx.Response(201, json=versions[0]),
        "GET /v1/datasets": {"data": versions, "has_more": False},
    }
    result = tlm(serve(answers), "dataset", "add", "toy", str(tmp_path / "all.csv"))
    assert "Dataset 'toy' version 4 (ds_4)" in result.stdout, result.output
    remedy = "Delete the new version with `tlm dataset delete toy@v4`."
    assert result.stderr == f"note: version 1 has the same files and options as version 4. {remedy}\n"


def test_skipped_files_are_reported_on_stderr(tmp_path: Path) -> None:
    for name in ("train.csv", "eval.csv", "test.xlsx", "README.md"):
        (tmp_path / name).write_text("text,label\nx,y\n", encoding="utf-8")
    result = tlm(lambda _: added_dataset(), "dataset", "add", "toy", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["id"] == "ds_1"
    assert result.stderr.splitlines() == [
        "note: files with unsupported types are ignored: test.xlsx. "
        "Supported types: jsonl, json, csv, tsv and parquet; all but parquet also as .gz or .zst.",
        "note: files whose names do not indicate exactly one split are ignored: eval.csv",
    ]


def test_missing_path_is_invalid_input(tmp_path: Path) -> None:
    assert tlm(unreachable, "dataset", "add", "toy", str(tmp_path / "none")).exit_code == 5
    (tmp_path / "all.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    for selection in (tmp_path / "none.csv", tmp_path):
        result = tlm(unreachable, "dataset", "add", "toy", str(tmp_path / "all.csv"), "--selection", str(selection))
        assert result.exit_code == 5
        assert result.stderr == f"error: Invalid --selection: no file '{selection}'. Check the path.\n"
    assert tlm(unreachable, "corpus", "add", "docs", str(tmp_path / "none")).exit_code == 5
    assert tlm(unreachable, "corpus", "add", "docs").exit_code == 5


def test_corpus_is_split_locally_and_uploaded_as_passages(tmp_path: Path) -> None:
    text = " ".join(f"Sentence number {n} is here to be read by somebody." for n in range(40))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    load = load_view(state="ready", version="v1", done=4, total=4)
    sent = {}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            sent["body"] = request.read()
            return httpx.Response(202, json=load)
        version = {
            "version": "v1", "language": "de", "count": 4, "state": "ready", "near_duplicates_dropped": 3,
            "near_duplicates_seconds": 1.25, "created_at": 1.0,
        }  # fmt: skip
        corpus = {"name": "docs", "version": "v1", "versions": [version], "loads": []}
        return httpx.Response(200, json=load if "/loads/" in request.url.path else corpus)

    result = tlm(handler, "corpus", "add", "docs", str(tmp_path / "a.txt"), "--language", "de")
    assert result.exit_code == 0, result.output
    assert b'name="files"; filename="passages-00000.parquet"' in sent["body"]
    assert b'name="language"\r\n\r\nde\r\n' in sent["body"]
    assert b'name="near_duplicates"\r\n\r\ndrop\r\n' in sent["body"]
    expected = "Corpus 'docs' is ready: 4 passages, version v1. Dropped 3 near duplicates in 1.2 s"
    assert " ".join(result.stdout.split()) == expected


def test_by_service_sends_only_urls() -> None:
    sent = {}

    def handler(request: httpx.Request) -> httpx.Response:
        sent[request.url.path] = json.loads(request.read())
        return httpx.Response(202, json=load_view())

    add = ("corpus", "add", "docs", "s3://texts/open/", "hub:owner/name", "--by-service", "--no-wait")
    assert tlm(handler, *add).exit_code == 0
    assert sent["/v1/corpora/from-sources"]["sources"] == ["s3://texts/open/", "hub:owner/name"]
    assert tlm(unreachable, *add, "--limit", "5").exit_code == 5


def test_error_of_the_gateway_names_the_request() -> None:
    answer = problem(500, "error", "Internal error.")
    answer.headers["X-Request-ID"] = "req_1"
    assert "contains this request with the id req_1" in tlm(lambda _: answer, "cancel", "job_1").stderr


READY = {"redis": "ok", "retriever": "ok"}
INFO = {"version": version("tlm-service"), "scales": [], "recipes": [], "max_upload_bytes": 1, "max_json_bytes": 1,
        "max_predict_texts": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("ready", "info", "failure"),
    [
        (READY, INFO, None),
        (problem(503, "unavailable", "retriever: No response within 3 s."), INFO, "retriever: No response"),
        (READY, problem(401, "unauthorized", "Unknown API token."), "Unknown API token."),
        (READY, {**INFO, "version": "9.9"}, "the gateway 9.9"),
    ],
)
def test_doctor_names_what_is_wrong(ready: Any, info: Any, failure: str | None) -> None:
    result = tlm(serve({"GET /readyz": ready, "GET /v1/info": info}), "doctor", "--json")
    checks = json.loads(result.stdout)["checks"]
    wrong = [text for text in checks.values() if text != "ok"]
    assert (result.exit_code, len(wrong)) == ((0, 0) if failure is None else (1, 1))
    assert failure is None or failure in wrong[0]


def test_doctor_exits_3_without_a_gateway() -> None:
    result = tlm(unreachable, "doctor")
    assert (result.exit_code, "does not answer" in result.stdout) == (3, True), result.output


def test_missing_local_file_is_invalid_input_for_every_command() -> None:
    for arguments in (
        ("dataset", "add", "toy", "/nope.csv"),
        ("predict", "job_1", "--file", "/nope.csv", "-o", "x"),
        ("evaluate", "/nope", "--dataset", "toy"),
        ("quantize", "/nope", "x"),
        ("convert", "/nope", "x"),
    ):
        result = tlm(unreachable, *arguments)
        assert (result.exit_code, "/nope" in result.output) == (5, True), result.output
    assert tlm(unreachable, "recipe", "keys", "epochz").exit_code == 4


def test_error_names_options_instead_of_fields_and_headers() -> None:
    fields = problem(422, "invalid_request", "/events: must have at least 1 item; /seeds/1: must be less",
                     errors=[{"pointer": "/priority", "message": "is unknown"}])  # fmt: skip
    lines = tlm(lambda _: fields, "jobs").stderr
    assert "error: --event: must have at least 1 item; --seed (number 2): must be less\n" in lines
    alias = problem(422, "invalid_request", "/alias: must be NAME@NAME, such as reviews@production")
    assert "error: alias: must be NAME@NAME" in tlm(lambda _: alias, "alias", "reviews", "job_1").stderr
    header = problem(401, "unauthorized", "Missing API token. Send the header 'Authorization: Bearer TOKEN'.")
    assert "header" not in tlm(lambda _: header, "jobs").stderr


@pytest.mark.parametrize(("url", "token"), [("http://127.0.0.1:8321/", "own"), ("http://127.0.0.1:8322", "")])
def test_url_of_the_own_stack_needs_no_token(tmp_path: Path, url: str, token: str) -> None:
    sent: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("Authorization", "").removeprefix("Bearer "))
        return httpx.Response(200, json={"data": [], "has_more": False})

    folder = StackFolder(tmp_path)
    folder.create()
    folder.token_file.write_text("own\n", encoding="utf-8")
    with folder.locked():
        folder.write_state(stack_state("http://127.0.0.1:8321"))
        assert tlm(handler, "jobs", url=url, token=None, data_dir=tmp_path).exit_code == 0
    assert sent == [token]


def test_status_states_the_start_of_the_stack_in_rfc_3339(tmp_path: Path) -> None:
    folder = StackFolder(tmp_path)
    folder.create()
    with folder.locked():
        folder.write_state(stack_state("http://127.0.0.1:1"))
        shown = tlm(unreachable, "status", data_dir=tmp_path)
        status = json.loads(tlm(unreachable, "status", "--json", data_dir=tmp_path).stdout)
    assert (status["started_at"], status["answers"]) == ("2026-01-02T03:04:05Z", False)
    assert (shown.exit_code, "It started " in shown.stdout) == (3, True)


def test_refused_request_names_the_options_that_set_a_token() -> None:
    refused = problem(401, "unauthorized", "Missing API token.")
    result = tlm(lambda _: refused, "jobs")
    assert "error: Missing API token. Set --token or TLM_TOKEN" in result.stderr
    assert json.loads(tlm(lambda _: refused, "jobs", "--json").stderr)["error"]["message"] == "Missing API token."


def test_open_starts_the_browser_at_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    assert tlm(unreachable, "open").exit_code == tlm(unreachable, "open", "job_1").exit_code == 0
    assert opened == [f"{URL}/ui/jobs", f"{URL}/ui/jobs/job_1"]


def test_recipe_keys_show_value_and_meaning() -> None:
    result = tlm(unreachable, "recipe", "keys", "finetune.max_steps", "--json")
    assert json.loads(result.stdout) == [
        {"key": "finetune.max_steps", "value": None, "meaning": "maximum number of steps, even if the epochs need more"}
    ]
    every = json.loads(tlm(unreachable, "recipe", "keys", "--json").stdout)
    assert len(every) > 50 and [entry["key"] for entry in every if not entry["meaning"]] == []


def test_scale_without_a_recipe_has_no_keys() -> None:
    result = tlm(unreachable, "recipe", "keys", "--scale", "instant")
    assert (result.exit_code, result.stdout) == (5, "") and "has no recipe" in result.stderr
