"""The `tlm` command over a made gateway: what is printed, where, and with which exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from tests.unit.client.gateway import URL, FileServer, Handler, end, event, job_view, problem, report
from tlm_client.__main__ import main
from tlm_client.cli import app
from tlm_client.console import Session

FAULT = {"code": "null_text", "message": "there is no text", "split": "train", "row": 7, "column": "text"}


def tlm(handler: Handler, *arguments: str, **over: Any) -> Result:
    session = Session(**{"url": URL, "token": "secret", "transport": httpx.MockTransport(handler), **over})
    return CliRunner().invoke(app, list(arguments), obj=session)


def serve(answers: dict[str, Any]) -> Handler:
    """Answers by `METHOD /path`; a response, or JSON."""

    def handler(request: httpx.Request) -> httpx.Response:
        answer = answers[f"{request.method} {request.url.path}"]
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    return handler


def unreachable(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(503, "store_unavailable", "Redis is away"), 3),
        (problem(404, "not_found", "no job 'job_9'"), 4),
        (problem(422, "invalid_request", "that cannot be"), 5),
        (problem(409, "illegal_transition", "it is over"), 1),
        (problem(500, "error", "a fault"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(answer: httpx.Response, code: int) -> None:
    result = tlm(lambda _: answer, "cancel", "job_9")
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert "error: " in result.stderr and result.stdout == ""


def test_a_gateway_that_is_away_is_exit_code_3_and_says_what_to_do() -> None:
    result = tlm(unreachable, "cancel", "job_1")
    assert result.exit_code == 3
    assert "tlm up" in result.stderr


def test_without_url_and_without_a_stack_the_command_says_how_to_get_one(tmp_path: Path) -> None:
    result = tlm(unreachable, "jobs", url=None, data_dir=tmp_path)
    assert result.exit_code == 3
    assert "tlm up" in result.stderr and "TLM_URL" in result.stderr


def test_wrong_usage_is_exit_code_2() -> None:
    assert tlm(unreachable, "submit").exit_code == 2
    assert tlm(unreachable, "no-such-command").exit_code == 2


def test_ctrl_c_while_the_command_is_loaded_is_exit_code_130_too() -> None:
    def loading() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        main(loading)
    assert ended.value.code == 130


@pytest.mark.parametrize("arguments", [["delete", "job_1"], ["profile", "add", "lab", "https://x"]])
def test_ctrl_c_at_a_question_is_exit_code_130_and_a_no_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    def typed(*_: object) -> str:
        raise KeyboardInterrupt

    session = Session(url=URL, token="secret", profiles=tmp_path / "profiles.toml")
    assert CliRunner().invoke(app, ["delete", "job_1"], obj=session, input="n\n").exit_code == 1
    keyboard = io.StringIO()
    monkeypatch.setattr(keyboard, "readline", typed)
    monkeypatch.setattr("sys.stdin", keyboard)
    monkeypatch.setattr("getpass.getpass", typed)
    with pytest.raises(SystemExit) as ended:
        app(arguments, obj=session)
    assert ended.value.code == 130


def test_the_command_is_found_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tlm_client", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"tlm {version('tlm-service')}\n")


def test_the_version_is_told_without_a_command() -> None:
    result = tlm(unreachable, "--version")
    assert (result.exit_code, result.stdout) == (0, f"tlm {version('tlm-service')}\n")


def test_with_json_the_error_stands_on_stdout_as_well() -> None:
    result = tlm(lambda _: problem(404, "not_found", "no job 'job_9'"), "show", "job_9", "--json")
    assert json.loads(result.stdout)["error"]["code"] == "not_found"
    assert result.exit_code == 4


def test_faults_in_data_are_listed_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "toy.csv"
    file.write_text("text,label\n", encoding="utf-8")
    faults = [{**FAULT, "row": row} for row in range(1, 31)]
    answer = problem(422, "invalid_dataset", "the data set has 30 faults", errors=faults)
    result = tlm(lambda _: answer, "dataset", "add", "toy", str(file))
    assert result.exit_code == 5
    assert "train, row 7, column 'text': there is no text" in result.stderr
    assert "and 10 more" in result.stderr


def test_submit_sends_what_was_asked_for() -> None:
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
        "set": {"joint.rho2": 5, "tokenizer.source": "hub:org/tok"}, "metadata": {"team": "search"},
    }  # fmt: skip


def test_submit_without_a_corpus_trains_on_the_task_alone() -> None:
    sent: dict[str, Any] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        sent.update(json.loads(request.content))
        return httpx.Response(202, json=job_view(corpus=None))

    assert tlm(handler, "submit", "--dataset", "toy").exit_code == 0
    assert sent == {"dataset": "toy", "set": {"selection.selector": "none"}}


def test_submit_takes_the_options_of_a_kind_as_json_or_from_a_file(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job_view())

    (tmp_path / "options.json").write_text('{"levels": [0.2, 0.4]}')
    for given in ('{"levels": [0.2, 0.4]}', str(tmp_path / "options.json")):
        result = tlm(handler, "submit", "--dataset", "toy", "--kind", "prune", "--options", given)
        assert result.exit_code == 0, result.output
    assert [(one["kind"], one["prune"]["levels"]) for one in sent] == [("prune", [0.2, 0.4])] * 2


@pytest.mark.parametrize(
    "wrong",
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
def test_what_cannot_be_a_job_is_refused_before_it_is_sent(wrong: list[str]) -> None:
    result = tlm(unreachable, "submit", "--dataset", "toy", *wrong)
    assert result.exit_code == 5, result.output


def test_watch_shows_the_way_and_the_scores() -> None:
    stream = event(1, "job.claimed") + 'event: progress\ndata: {"stage":"joint","node":"joint.s0","step":5,"total":10,'
    stream += '"rate":2.5,"unit":"steps","eta_seconds":62,"nodes_done":3,"nodes_total":8}\n\n' + end()
    answers = {
        "GET /v1/jobs/job_1/events": httpx.Response(200, text=stream),
        "GET /v1/jobs/job_1": job_view(state="succeeded", finished_at=70.0),
        "GET /v1/jobs/job_1/report": report(),
    }
    result = tlm(serve(answers), "watch", "job_1")
    assert result.exit_code == 0, result.output
    assert "joint.s0  50% 5/10  2.5 steps/s  1:02 left  stage 4 of 8" in result.stderr
    assert "succeeded after 1:09" in result.stdout and "0.500" in result.stdout and "1.00e+12 FLOPs" in result.stdout


@pytest.mark.parametrize(("kind", "told"), [("train", True), ("share_tickets", False)])
def test_a_model_is_offered_only_where_there_is_one(kind: str, told: bool) -> None:
    spec = {"dataset": "toy", "kind": kind} | ({"share_tickets": {"others": ["b"]}} if kind != "train" else {})
    answers = {
        "GET /v1/jobs/job_1/events": httpx.Response(200, text=end()),
        "GET /v1/jobs/job_1": job_view(state="succeeded", finished_at=70.0, spec=spec),
        "GET /v1/jobs/job_1/report": report(),
    }
    result = tlm(serve(answers), "watch", "job_1")
    assert result.exit_code == 0 and ("tlm download" in result.stdout) is told, result.output


def test_watch_of_a_job_that_fails_is_exit_code_1() -> None:
    answers = {
        "GET /v1/jobs/job_1/events": httpx.Response(200, text=end("failed")),
        "GET /v1/jobs/job_1": job_view(state="failed", error={"code": "out_of_memory", "message": "does not fit"}),
    }
    result = tlm(serve(answers), "watch", "job_1")
    assert result.exit_code == 1
    assert "does not fit" in result.stdout


def test_watch_with_json_gives_one_value_a_line() -> None:
    answers = {
        "GET /v1/jobs/job_1/events": httpx.Response(200, text=event(1) + end("cancelled")),
        "GET /v1/jobs/job_1": job_view(state="cancelled"),
    }
    result = tlm(serve(answers), "watch", "job_1", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["event"]["seq"] == 1
    assert lines[1]["job"]["state"] == "cancelled"
    assert result.exit_code == 1


def test_ctrl_c_in_watch_leaves_the_job_running_and_says_how_to_come_back() -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        raise KeyboardInterrupt

    result = tlm(handler, "watch", "job_1")
    assert result.exit_code == 130
    assert "tlm watch job_1" in result.stderr
    assert asked == ["GET"]


def test_what_the_gateway_sends_is_shown_and_not_obeyed() -> None:
    hits = [{"id": "1", "score": 1.0, "source": "[red]x[/red]", "text": "[bold]hi[/bold] <script>"}]
    result = tlm(
        serve({"POST /v1/corpora/docs/search": {"version": "v", "hits": hits}}), "corpus", "search", "docs", "q"
    )
    assert "[red]x[/red]" in result.stdout and "[bold]hi[/bold] <script>" in result.stdout


def test_a_corpus_is_deleted_only_after_a_yes_and_never_for_a_version_that_is_empty() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(204)

    assert tlm(handler, "corpus", "delete", "docs").exit_code == 1, "nobody said yes"
    for refused in (tlm(handler, "corpus", verb, "docs@") for verb in ("delete", "refused")):
        assert (refused.exit_code, "names no version" in refused.stderr) == (5, True), refused.output
    assert asked == []
    assert tlm(handler, "corpus", "delete", "docs@v1", "--yes").stdout == "deleted version v1 of corpus 'docs'\n"
    assert tlm(handler, "corpus", "delete", "docs", "-y").stdout == "deleted corpus 'docs'\n"
    assert asked == ["DELETE /v1/corpora/docs/versions/v1", "DELETE /v1/corpora/docs"]


def upload_of(state: str, name: str = "load_1") -> dict[str, Any]:
    return {"id": name, "state": state}


def test_the_upload_of_a_corpus_that_is_under_way_is_cancelled_unless_another_is_named() -> None:
    corpus = {"name": "docs", "loads": [upload_of("indexing", "load_2"), upload_of("ready")]}
    answers = {
        "GET /v1/corpora/docs": corpus,
        "POST /v1/corpora/docs/loads/load_2/cancel": upload_of("cancelling", "load_2"),
        "POST /v1/corpora/docs/loads/load_1/cancel": upload_of("cancelled"),
    }
    assert tlm(serve(answers), "corpus", "cancel", "docs").stdout == "load_2 of corpus 'docs' is cancelling\n"
    assert "load_1 of corpus 'docs' is cancelled" in tlm(serve(answers), "corpus", "cancel", "docs", "load_1").stdout
    corpus["loads"] = [upload_of("ready")]
    result = tlm(serve(answers), "corpus", "cancel", "docs")
    assert (result.exit_code, result.stdout) == (5, "") and "no upload of corpus 'docs' is under way" in result.stderr


def test_waiting_for_an_upload_that_is_cancelled_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words about a thing that is told of here. " * 9, encoding="utf-8")
    answers = {"POST /v1/corpora": upload_of("queued"), "GET /v1/corpora/docs/loads/load_1": upload_of("cancelled")}
    result = tlm(serve(answers), "corpus", "add", "docs", str(tmp_path / "a.txt"))
    assert result.exit_code == 1
    assert "was cancelled" in result.stderr


def test_download_puts_the_files_into_the_folder_and_lists_them(tmp_path: Path) -> None:
    result = tlm(FileServer(b"weights" * 1000), "download", "job_1", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"] == [str(tmp_path / "out" / "model" / "model.safetensors")]


def test_a_folder_is_uploaded_split_by_split(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "x", "label": "y"}\n', encoding="utf-8")
    fields = []

    def handler(request: httpx.Request) -> httpx.Response:
        body = request.read()
        fields.extend(f for f in (b"train", b"validation", b"test", b"file") if b'name="%s"; filename' % f in body)
        return added()

    result = tlm(handler, "dataset", "add", "toy", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert fields == [b"train", b"validation", b"test"]
    assert "note: n" in result.stdout
    assert result.stderr == ""


def added() -> httpx.Response:
    """The gateway's answer to a data set that it took."""
    view: dict[str, Any] = {"id": "ds_1", "name": "toy", "version": 1, "digest": "d", "labels": 1, "created_at": 1}
    report = {"labels": [{"label": "y", "train": 1}], "notes": ["n"]}
    return httpx.Response(201, json={**view, "rows": {"train": 1}, "report": report})


def test_files_of_a_folder_that_are_left_out_are_told_on_stderr(tmp_path: Path) -> None:
    for name in ("train.csv", "eval.csv", "test.xlsx", "README.md"):
        (tmp_path / name).write_text("text,label\nx,y\n", encoding="utf-8")
    result = tlm(lambda _: added(), "dataset", "add", "toy", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["id"] == "ds_1"
    assert result.stderr.splitlines() == [
        "note: files of a type that is not read were left out: test.xlsx; "
        "give jsonl, csv, tsv or parquet (the text forms also as .gz)",
        "note: files whose names tell no split were left out: eval.csv",
    ]


def test_a_path_that_is_not_there_is_invalid_input(tmp_path: Path) -> None:
    assert tlm(unreachable, "dataset", "add", "toy", str(tmp_path / "none")).exit_code == 5
    (tmp_path / "all.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    for selection in (tmp_path / "none.csv", tmp_path):
        result = tlm(unreachable, "dataset", "add", "toy", str(tmp_path / "all.csv"), "--selection", str(selection))
        assert result.exit_code == 5
        assert result.stderr == f"error: --selection: there is no file '{selection}'; check the path\n"
    assert tlm(unreachable, "corpus", "add", "docs", str(tmp_path / "none")).exit_code == 5
    assert tlm(unreachable, "corpus", "add", "docs").exit_code == 5


def test_a_corpus_is_cut_here_and_uploaded_as_passages(tmp_path: Path) -> None:
    text = " ".join(f"Sentence number {n} is here to be read by somebody." for n in range(40))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    load = {"id": "load_1", "state": "ready", "version": "v1", "done": 4, "total": 4}
    sent = {}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            sent["body"] = request.read()
            return httpx.Response(202, json=load)
        version = {"version": "v1", "state": "ready", "near_duplicates_dropped": 3, "near_duplicates_seconds": 1.25}
        corpus = {"name": "docs", "versions": [version]}
        return httpx.Response(200, json=load if "/loads/" in request.url.path else corpus)

    result = tlm(handler, "corpus", "add", "docs", str(tmp_path / "a.txt"), "--language", "de")
    assert result.exit_code == 0, result.output
    assert b'name="files"; filename="passages-00000.parquet"' in sent["body"]
    assert b'name="language"\r\n\r\nde\r\n' in sent["body"]
    assert b'name="near_duplicates"\r\n\r\ndrop\r\n' in sent["body"]
    told = "corpus 'docs' is ready: 4 passages, version v1; 3 near duplicates dropped, which took 1.2 s"
    assert " ".join(result.stdout.split()) == told


def test_a_corpus_that_the_service_fetches_is_told_by_address_alone() -> None:
    sent = {}

    def handler(request: httpx.Request) -> httpx.Response:
        sent[request.url.path] = json.loads(request.read())
        return httpx.Response(202, json={"id": "load_1", "state": "queued"})

    add = ("corpus", "add", "docs", "s3://texts/open/", "hub:owner/name", "--by-service", "--no-wait")
    assert tlm(handler, *add).exit_code == 0
    assert sent["/v1/corpora/from-sources"]["sources"] == ["s3://texts/open/", "hub:owner/name"]
    assert tlm(unreachable, *add, "--limit", "5").exit_code == 5


def test_every_command_can_print_json() -> None:
    def commands(typer_app: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = [(*path, c.name or c.callback.__name__.replace("_", "-")) for c in typer_app.registered_commands]
        for group in typer_app.registered_groups:
            found += commands(group.typer_instance, (*path, group.name))
        return found

    names = commands(app, ())
    assert len(names) >= 19
    for name in names:
        shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
        assert "--json" in shown.stdout, name
