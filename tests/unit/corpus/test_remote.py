"""Corpora read from addresses that fsspec understands."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Iterator

import fsspec
import pytest
from fsspec.registry import known_implementations

from tlm_core.corpus.read import read_sources
from tlm_core.corpus.remote import is_address
from tlm_core.errors import InvalidRequest, MissingDependency, NotFound, StorageFull
from tlm_core.pulse import PULSE


@pytest.fixture
def bucket() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    fs.pipe({
        "/bucket/b/two.jsonl": b'{"text": "the second text"}\n',
        "/bucket/a.txt.gz": gzip.compress(b"the first text"),
        "/bucket/picture.png": b"no text",
    })  # fmt: skip
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def test_remote_folder_is_read_by_file_name(bucket: str) -> None:
    notes: list[str] = []
    passages = [(passage.text, passage.source) for passage in read_sources([bucket], notify=notes.append)]
    assert passages == [("the first text", "a.txt.gz"), ("the second text", "two.jsonl")]
    assert notes == [f"{bucket}: skipped 1 file of other types"]


def test_a_single_file_at_an_address_is_read(bucket: str) -> None:
    assert [passage.text for passage in read_sources([f"{bucket}/b/two.jsonl"])] == ["the second text"]


def test_unreadable_address_is_reported_before_reading(bucket: str) -> None:
    for address, error in (
        (f"{bucket}/picture.png", InvalidRequest),
        ("nothing-like-it://x/y.txt", InvalidRequest),
        ("memory://nowhere", InvalidRequest),
    ):
        with pytest.raises(error):
            next(read_sources([bucket, address]))


def test_missing_protocol_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "played", {"class": "no_such.X", "err": "get it"})
    with pytest.raises(MissingDependency, match="played://"):
        next(read_sources(["played://bucket/a.txt"]))


def test_file_deleted_before_reading_is_reported(bucket: str) -> None:
    passages = read_sources([bucket])
    next(passages)
    fsspec.filesystem("memory").rm("/bucket/b/two.jsonl")
    with pytest.raises(NotFound, match=r"two\.jsonl"):
        next(passages)


def test_download_counts_as_progress(bucket: str) -> None:
    before = PULSE.count
    assert list(read_sources([bucket]))
    assert PULSE.count > before


def test_full_disk_is_no_fault_of_the_address(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise RuntimeError("cannot cache the file") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", fill)
    with pytest.raises(StorageFull, match=r"fetching .*a\.txt\.gz: no space left"):
        next(read_sources([bucket]))


@pytest.mark.parametrize("reason", [PermissionError("forbidden"), RuntimeError("no credentials")])
def test_denied_access_is_not_retried(bucket: str, monkeypatch: pytest.MonkeyPatch, reason: Exception) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise reason

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", refuse)
    with pytest.raises(InvalidRequest, match=f"two.jsonl.*{reason}|a.txt.gz.*{reason}"):
        next(read_sources([bucket]))


@pytest.mark.parametrize(("source", "address"), [
    ("s3://bucket/x", True), ("simplecache::https://host/x.csv", True), ("notes/a.txt", False), ("/a/b://c", False),
    ("hub:owner/name", False),
])  # fmt: skip
def test_addresses_and_paths_are_distinguished(source: str, address: bool) -> None:
    assert is_address(source) is address
