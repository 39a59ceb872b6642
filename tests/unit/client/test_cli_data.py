"""Commands of datasets and corpora: the requests that they send and the output that they print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

from tests.unit.client.gateway import dataset_view, load_view, problem, serve, tlm, unreachable

DATA_ERROR = {"code": "null_text", "message": "there is no text", "split": "train", "row": 7, "column": "text"}


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


def test_ctrl_c_during_a_load_states_that_the_load_continues(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words about a thing that this file describes. " * 9, encoding="utf-8")

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            raise KeyboardInterrupt
        return httpx.Response(202, json=upload("queued"))

    result = tlm(handler, "corpus", "add", "docs", str(tmp_path / "a.txt"))
    assert result.exit_code == 130
    assert "'docs' is loading" in result.stderr and "tlm corpus cancel docs" in result.stderr


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
