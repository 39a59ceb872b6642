"""The `tlm` command against a canned gateway: output, streams and exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import httpx
import pytest
from typer.testing import CliRunner

from tests.unit.client.gateway import URL, FileServer, job_summary, problem, serve, tlm, unreachable
from tlm_client.__main__ import main
from tlm_client.cli import app
from tlm_client.console import Session
from tlm_client.profiles import Profile, save_profiles
from tlm_client.stack.folder import StackFolder, StackState
from tlm_core.training.recipe import Scale


def stack_state(url: str) -> StackState:
    started_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return StackState(state="ready", pid=1, url=url, started_at=started_at)


def test_option_of_the_gateway_after_the_command_is_explained() -> None:
    result = tlm(unreachable, "jobs", "--url", URL)
    assert (result.exit_code, "--url goes before the command: tlm --url … COMMAND" in result.stderr) == (2, True)


def test_help_of_submit_names_every_scale() -> None:
    words = " ".join(tlm(unreachable, "submit", "--help").output.split())
    assert ", ".join(get_args(Scale)) in words


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


def test_invalid_field_of_the_message_is_not_repeated() -> None:
    errors = [{"code": "missing", "message": "is required", "in": "body", "pointer": f"/{name}"} for name in "ab"]
    answer = problem(422, "invalid_request", "/a: is required", errors=errors)
    assert tlm(lambda _: answer, "dataset", "list").stderr.splitlines()[1:] == ["  /b: is required"]


def test_empty_list_says_what_adds_an_entry() -> None:
    result = tlm(serve({"GET /v1/webhooks": {"data": [], "has_more": False}}), "webhook", "list")
    assert (result.exit_code, result.stdout) == (0, "No webhooks. Add one with: tlm webhook add URL\n")


def test_markup_from_the_gateway_is_printed_as_text() -> None:
    hits = [{"id": "1", "score": 1.0, "source": "[red]x[/red]", "text": "[bold]hi[/bold] <script>"}]
    result = tlm(
        serve({"POST /v1/corpora/docs/search": {"version": "v", "hits": hits}}), "corpus", "search", "docs", "q"
    )
    assert "[red]x[/red]" in result.stdout and "[bold]hi[/bold] <script>" in result.stdout


def test_download_writes_and_lists_the_files(tmp_path: Path) -> None:
    result = tlm(FileServer(b"weights" * 1000), "download", "job_1", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"] == [str(tmp_path / "out" / "model" / "model.safetensors")]
    again = tlm(FileServer(b"weights" * 1000), "download", "job_1", str(tmp_path / "out"))
    assert again.stderr == "downloading model/model.safetensors 100% already complete\n"


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


def test_path_that_the_system_refuses_is_invalid_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        ("status", "--data-dir", str(tmp_path / "file")),
        ("down", "--data-dir", str(tmp_path / "file")),
        ("dataset", "add", "toy", "n" * 300),
    ):
        result = tlm(unreachable, *arguments)
        assert (result.exit_code, "Check the path" in result.stderr) == (5, True), result.output


def test_failed_copy_of_a_model_is_an_error_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = shutil.Error([("model.onnx", "small/model.onnx", "[Errno 28] No space left on device")])
    monkeypatch.setattr("tlm_core.quantization.quantize", Mock(side_effect=failure))
    result = tlm(unreachable, "quantize", str(tmp_path), "small")
    assert (result.exit_code, "No space left" in result.stderr) == (5, True), result.output


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
    result = tlm(unreachable, "recipe", "keys", "finetune.max_steps", "maximum", "--json")
    assert json.loads(result.stdout) == [
        {"key": "finetune.max_steps", "value": None, "meaning": "maximum number of steps, even if the epochs need more"}
    ]
    every = json.loads(tlm(unreachable, "recipe", "keys", "--json").stdout)
    assert len(every) > 50 and [entry["key"] for entry in every if not entry["meaning"]] == []


def test_search_of_recipe_keys_ignores_case() -> None:
    result = tlm(unreachable, "recipe", "keys", "Query", "rake", "--json")
    assert [entry["key"] for entry in json.loads(result.stdout)] == ["selection.query"]


def test_scale_without_a_recipe_has_no_keys() -> None:
    result = tlm(unreachable, "recipe", "keys", "--scale", "instant")
    assert (result.exit_code, result.stdout) == (5, "") and "has no recipe" in result.stderr


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
    assert result.stderr.startswith("error: Cannot write, because the disk is full (No space left on device)")
    assert result.stderr.count("\n") == 1


def test_output_beyond_the_limit_of_a_file_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", "tlm_client", "--version"]
    with open(tmp_path / "out", "w") as out:
        result = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: Cannot write") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "stream", "code"),
    [
        ("profile list", 1, 0),
        ("profile list --json", 1, 0),
        ("--url http://127.0.0.1:1 cancel job_1 --json", 2, 3),
    ],
)
def test_closed_stream_leaves_the_exit_code_unchanged(tmp_path: Path, arguments: str, stream: int, code: int) -> None:
    command = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", sys.executable, "-m", "tlm_client", *arguments.split()]
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout + result.stderr) == (code, "")


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
