"""Downloads: cut, resumed, checked, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from tests.unit.client.gateway import CutStream, FileServer, client_of
from tlm_core.errors import CorruptArtifact, Unavailable

CONTENT = bytes(range(256)) * 1000


@pytest.mark.parametrize("seed", range(8))
def test_a_download_cut_at_random_bytes_goes_on_where_it_stopped(tmp_path: Path, seed: int) -> None:
    server = FileServer(CONTENT, cuts=5, seed=seed)
    with client_of(server) as client:
        (path,) = client.download("job_1", tmp_path)
    assert path == tmp_path / "model" / "model.safetensors"
    assert path.read_bytes() == CONTENT
    assert len(server.ranges) == 6
    starts = [int(r.removeprefix("bytes=").removesuffix("-")) for r in server.ranges if r]
    assert starts == sorted(starts) and starts[-1] > 0
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_a_second_run_goes_on_with_what_the_first_has_left(tmp_path: Path) -> None:
    server = FileServer(CONTENT)

    def cut_for_good(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/model") or "Range" not in request.headers:
            answer = server(request)
            if not request.url.path.endswith("/model"):
                answer.stream = CutStream(CONTENT, 50_000)
            return answer
        raise httpx.ConnectError("the gateway is gone")

    with client_of(cut_for_good) as client, pytest.raises(Unavailable, match="goes on where it stopped"):
        client.download("job_1", tmp_path)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    server.ranges.clear()
    with client_of(server) as client:
        (path,) = client.download("job_1", tmp_path)
    assert server.ranges == ["bytes=50000-"]
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_there_already_is_not_fetched_again(tmp_path: Path) -> None:
    server = FileServer(CONTENT)
    with client_of(server) as client:
        client.download("job_1", tmp_path)
        client.download("job_1", tmp_path)
    assert len(server.ranges) == 1


def test_a_file_that_differs_on_disk_is_fetched_again(tmp_path: Path) -> None:
    server = FileServer(CONTENT)
    with client_of(server) as client:
        (path,) = client.download("job_1", tmp_path)
        path.write_bytes(b"x" * len(CONTENT))
        client.download("job_1", tmp_path)
    assert path.read_bytes() == CONTENT


def test_wrong_bytes_are_an_error_and_nothing_takes_the_file_s_name(tmp_path: Path) -> None:
    server = FileServer(CONTENT)

    def wrong(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/model"):
            return server(request)
        server.ranges.append(None)
        return httpx.Response(200, content=b"x" * len(CONTENT))

    with client_of(wrong) as client, pytest.raises(CorruptArtifact, match="SHA-256"):
        client.download("job_1", tmp_path)
    assert len(server.ranges) == 2, "the bytes may have been spoilt on the way, so one more try is due"
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def test_what_is_left_of_other_content_is_begun_anew(tmp_path: Path) -> None:
    """The gateway ignores the range, since its content is not the one of If-Range."""
    server = FileServer(CONTENT)
    partial = tmp_path / "model" / f"model.safetensors.{server.sha256[:16]}.part"
    partial.parent.mkdir()
    partial.write_bytes(b"old")

    def whole(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/model"):
            return server(request)
        return httpx.Response(200, content=CONTENT)

    with client_of(whole) as client:
        (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "..\\windows"])
def test_a_file_name_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with client_of(FileServer(CONTENT, name=name)) as client, pytest.raises(CorruptArtifact, match="outside"):
        client.download("job_1", tmp_path / "inner")
    assert os.listdir(tmp_path) == []


def test_an_empty_file_is_downloaded_too(tmp_path: Path) -> None:
    with client_of(FileServer(b"")) as client:
        (path,) = client.download("job_1", tmp_path)
    assert path.read_bytes() == b""
