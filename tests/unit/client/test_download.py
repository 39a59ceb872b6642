"""Downloads: resumed after a broken connection, verified, and published only when complete."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.client.gateway import CutStream, FileServer, Handler, client_of, problem
from tlm_client.models import _download
from tlm_client.transfer import JOB_MARK, Download, FileProgress, claim_folder
from tlm_core.artifacts import FileEntry
from tlm_core.errors import CorruptArtifact, InvalidRequest, NotFound, Unavailable

CONTENT = bytes(range(256)) * 1000


def instead_of_file(server: FileServer, file: Handler) -> Handler:
    """Return a gateway that lists the files of `server`, and answers requests for a file by `file`."""
    return lambda request: (server if request.url.path.endswith("/model") else file)(request)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 0.99), max_size=5))
def test_download_resumes_after_each_broken_connection(cuts: list[float]) -> None:
    server = FileServer(CONTENT, cuts=cuts)
    with TemporaryDirectory() as folder, client_of(server) as client:
        (path,) = client.download("job_1", Path(folder))
        assert path == Path(folder) / "model" / "model.safetensors"
        assert path.read_bytes() == CONTENT
        assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert len(server.ranges) == len(cuts) + 1
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in server.ranges if r]
    assert starts == sorted(starts) and all(start > 0 for start in starts)


def test_next_download_resumes_a_partial_file(tmp_path: Path) -> None:
    server = FileServer(CONTENT)

    def cut_once(request: httpx.Request) -> httpx.Response:
        if "Range" in request.headers:
            raise httpx.ConnectError("the gateway is down")
        response = server(request)
        response.stream = CutStream(CONTENT, 50_000)
        return response

    with client_of(instead_of_file(server, cut_once)) as client, pytest.raises(Unavailable, match="to resume"):
        client.download("job_1", tmp_path)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    server.ranges.clear()
    with client_of(server) as client:
        (path,) = client.download("job_1", tmp_path)
    assert server.ranges == ["bytes=50000-"]
    assert path.read_bytes() == CONTENT


def test_complete_file_is_skipped_and_changed_file_is_downloaded_again(tmp_path: Path) -> None:
    server = FileServer(CONTENT)
    with client_of(server) as client:
        (path,) = client.download("job_1", tmp_path)
        client.download("job_1", tmp_path)
        assert len(server.ranges) == 1
        path.write_bytes(b"x" * len(CONTENT))
        client.download("job_1", tmp_path)
    assert path.read_bytes() == CONTENT


def test_folder_with_another_model_is_refused(tmp_path: Path) -> None:
    for name in (".DS_Store", ".git/config", "model/model.safetensors.0123456789abcdef.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    server = FileServer(CONTENT)
    with client_of(server) as client:
        client.download("job_1", tmp_path)
        (tmp_path / "linear").mkdir()
        (tmp_path / "linear" / "weights.npz").write_text("x")
        with pytest.raises(InvalidRequest, match=r"holds files of another model: linear/weights\.npz. Name an empty"):
            client.download("job_1", tmp_path)
    assert len(server.ranges) == 1


def test_folder_with_the_model_of_another_job_is_refused(tmp_path: Path) -> None:
    with client_of(FileServer(CONTENT, name="labels.json")) as client:
        client.download("job_1", tmp_path)
        client.download("job_2", tmp_path)  # Both jobs have the same model.
    with client_of(FileServer(b"other", name="labels.json")) as client:
        with pytest.raises(InvalidRequest, match=r"holds files of another model: labels\.json. Name an empty folder"):
            client.download("job_1", tmp_path)
        assert (tmp_path / "labels.json").read_bytes() == CONTENT
        client.download("job_2", tmp_path)
    assert (tmp_path / "labels.json").read_bytes() == b"other"


def test_models_of_a_job_replace_its_linear_model_without_its_folder(tmp_path: Path) -> None:
    for name in ("linear/labels.json", "labels.json", "labels.json"):
        with client_of(FileServer(CONTENT, name=name)) as client:
            client.download("job_1", tmp_path)
    with client_of(FileServer(b"other")) as client, pytest.raises(InvalidRequest, match=r"model: linear/labels\.json"):
        client.download("job_2", tmp_path)


def test_interrupted_download_belongs_to_its_job(tmp_path: Path) -> None:
    first, final = FileServer(CONTENT, name="linear/ngrams.json"), FileServer(b"other", name="linear/ngrams.json")
    with client_of(first) as client:
        claim_folder(tmp_path, "job_1", client.model("job_1").files)
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear/ngrams.json").write_bytes(CONTENT)  # The connection broke after this file.
    with client_of(final) as client:
        with pytest.raises(InvalidRequest, match="files of another model"):
            client.download("job_2", tmp_path)
        client.download("job_1", tmp_path)
    assert (tmp_path / "linear/ngrams.json").read_bytes() == b"other"


def test_final_model_replaces_the_linear_one_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    linear, final = FileServer(CONTENT, name="linear/ngrams.json"), FileServer(CONTENT)

    def unfinished(request: httpx.Request) -> httpx.Response:
        answer = linear(request)
        return httpx.Response(200, json=answer.json() | {"final": False}) if request.url.path[-1] == "l" else answer

    job = "job_" + 19 * "1"
    for server, name, is_final in ((unfinished, "linear/ngrams.json", False), (final, final.name, True)):
        folder, served_final = _download(job, client_of(server))
        assert ((folder / name).is_file(), served_final) == (True, is_final)


def test_loading_a_model_leaves_the_client_of_the_caller_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with client_of(FileServer(CONTENT)) as client:
        for _ in range(2):
            _download("job_" + 19 * "1", client)


def test_wrong_digest_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    requests = []

    def wrong(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, content=b"x" * len(CONTENT))

    with (
        client_of(instead_of_file(FileServer(CONTENT), wrong)) as client,
        pytest.raises(CorruptArtifact, match="SHA-256"),
    ):
        client.download("job_1", tmp_path)
    assert len(requests) == 2, "the client downloads a second time, because the bytes may be damaged on the way"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [JOB_MARK], "only the mark, and no part of the file"


def test_more_bytes_than_the_manifest_says_are_an_error(tmp_path: Path) -> None:
    handler = instead_of_file(FileServer(CONTENT), lambda _: httpx.Response(200, content=CONTENT + b"x"))
    with client_of(handler) as client, pytest.raises(CorruptArtifact, match="too many bytes"):
        client.download("job_1", tmp_path)


def test_partial_file_is_replaced_when_the_gateway_ignores_the_range(tmp_path: Path) -> None:
    server = FileServer(CONTENT)
    partial = tmp_path / "model" / f"model.safetensors.{server.sha256[:16]}.part"
    partial.parent.mkdir()
    partial.write_bytes(b"old")
    with client_of(instead_of_file(server, lambda _: httpx.Response(200, content=CONTENT))) as client:
        (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "..\\windows"])
def test_file_name_outside_of_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    with client_of(FileServer(CONTENT, name=name)) as client, pytest.raises(CorruptArtifact, match="outside"):
        client.download("job_1", tmp_path / "inner")
    assert os.listdir(tmp_path) == []


def test_empty_file_is_downloaded(tmp_path: Path) -> None:
    with client_of(FileServer(b"")) as client:
        (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == b""


def test_simultaneous_downloads_into_one_folder_transfer_each_file_once(tmp_path: Path) -> None:
    server, both_listed = FileServer(CONTENT), Barrier(2)

    def slow(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/model"):
            both_listed.wait(30)
        else:
            time.sleep(0.3)
        return server(request)

    def download(_: int) -> bytes:
        with client_of(slow, sleep=time.sleep) as client:
            return client.download("job_1", tmp_path)[0].read_bytes()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(download, range(2))) == [CONTENT, CONTENT]
    assert server.ranges == [None]


def test_download_reports_once_that_another_download_uses_the_folder(tmp_path: Path) -> None:
    server, other, sleeps, reports = FileServer(CONTENT), ExitStack(), [], list[FileProgress]()
    entry = FileEntry(name=server.name, size=len(CONTENT), sha256=server.sha256)
    assert Download(entry, tmp_path, None).lock(other)

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 100:
            other.close()

    with client_of(server, sleep=sleep) as client:
        client.download("job_1", tmp_path, reports.append)
    assert [report.waits for report in reports[:2]] == [True, False]
    assert sum(report.waits for report in reports) == 1


@pytest.mark.parametrize("blocked", [".", "model/model.safetensors"])
def test_wrong_local_path_is_invalid_input(tmp_path: Path, blocked: str) -> None:
    folder = tmp_path / "out"
    (folder / blocked).parent.mkdir(parents=True, exist_ok=True)
    if blocked.endswith("safetensors"):
        (folder / blocked).mkdir()
    else:
        (folder / blocked).write_text("x")
    with (
        client_of(FileServer(CONTENT)) as client,
        pytest.raises(InvalidRequest, match=r"Failed writing .* Check the p"),
    ):
        client.download("job_1", folder)


def test_outage_during_a_download_is_no_wrong_path(tmp_path: Path) -> None:
    outage = problem(404, "not_found", "The model is deleted.")
    handler = instead_of_file(FileServer(CONTENT), lambda _: outage)
    with client_of(handler) as client, pytest.raises(NotFound, match="is deleted"):
        client.download("job_1", tmp_path)


def test_archive_without_a_length_is_downloaded(tmp_path: Path) -> None:
    with client_of(lambda _: httpx.Response(200, stream=CutStream(CONTENT))) as client:
        assert client.download_archive("job_1", tmp_path / "all.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("cut", [None, 50_000])
def test_archive_is_written_only_when_complete(tmp_path: Path, cut: int | None) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Length": str(len(CONTENT))}, stream=CutStream(CONTENT, cut))

    with client_of(handler) as client:
        if cut is None:
            assert client.download_archive("job_1", tmp_path / "all.tar").read_bytes() == CONTENT
        else:
            with pytest.raises(Unavailable):
                client.download_archive("job_1", tmp_path / "all.tar")
    assert (tmp_path / "all.tar").exists() == (cut is None)
