"""Ids of the hub, and what its library's failures become."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from tlm_core.corpus.hub import stream_hub
from tlm_core.errors import (
    InvalidRequest,
    NotFound,
    StorageFull,
    StorageUnavailable,
    TLMError,
    Unavailable,
    is_hub_outage,
)
from tlm_core.hub import hub_errors, model_folder, refuse_folder, refuse_outside_files
from tlm_core.names import HUB
from tlm_core.tables.findings import Findings
from tlm_core.tasks.hub import HubSource, read_hub


def of_datasets(name: str) -> Callable[[], Exception]:
    def failure() -> Exception:
        from datasets import exceptions

        error: Exception = getattr(exceptions, name)("a long text\nand more")
        return error

    return failure


def of_hub(name: str) -> Callable[[], Exception]:
    def failure() -> Exception:
        from huggingface_hub import errors

        kind, answer = getattr(errors, name), {"response": Mock()}
        error: Exception = kind("a long text", **(answer if issubclass(kind, errors.HfHubHTTPError) else {}))
        return error

    return failure


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (of_datasets("DatasetNotFoundError"), NotFound),
        (of_datasets("DatasetGenerationError"), InvalidRequest),
        (of_hub("RepositoryNotFoundError"), NotFound),
        (of_hub("RevisionNotFoundError"), NotFound),
        (of_hub("EntryNotFoundError"), NotFound),
        (of_hub("LocalEntryNotFoundError"), Unavailable),
        (of_hub("HfHubHTTPError"), Unavailable),
        (of_hub("OfflineModeIsEnabled"), Unavailable),
        (of_hub("HTTPError"), Unavailable),
        (lambda: ConnectionError("a long text"), Unavailable),
        (lambda: ValueError("a long text"), InvalidRequest),
        (lambda: RuntimeError("a long text"), InvalidRequest),
    ],
)
def test_failures_of_the_libraries_become_ours(failure: Callable[[], Exception], expected: type[TLMError]) -> None:
    with pytest.raises(expected, match=r"the model .*\(a long text\)\.") as raised, hub_errors("the model 'hub:a/b'"):
        raise failure()
    assert type(raised.value) is expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull),
        (errno.EACCES, StorageUnavailable), (errno.EROFS, StorageUnavailable), (errno.EIO, StorageUnavailable),
        (errno.ECONNREFUSED, Unavailable), (errno.ETIMEDOUT, Unavailable), (errno.ENETUNREACH, Unavailable),
    ],
)  # fmt: skip
def test_faults_of_the_local_folder_are_no_outage_of_the_hub(number: int, expected: type[TLMError]) -> None:
    with pytest.raises(expected, match="the model 'hub:a/b'") as raised, hub_errors("the model 'hub:a/b'"):
        raise OSError(number, os.strerror(number))
    assert is_hub_outage(raised.value) is (expected is Unavailable)


@pytest.mark.parametrize("wrapper", [of_datasets("DatasetGenerationError"), of_hub("LocalEntryNotFoundError"), OSError])
@pytest.mark.parametrize("is_cause", [True, False])
def test_wrapped_fault_of_the_local_folder_is_recognized(wrapper: Callable[[], Exception], *, is_cause: bool) -> None:
    with pytest.raises(StorageFull, match=r"storing a dataset.*No space left"), hub_errors("a dataset"):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if is_cause:
                raise wrapper() from error
            raise wrapper()  # noqa: B904


def test_denied_connection_is_an_outage_of_the_hub() -> None:
    with pytest.raises(Unavailable) as raised, hub_errors("a model"):
        raise OSError("cannot connect") from PermissionError(errno.EACCES, "Permission denied")
    assert is_hub_outage(raised.value)


def test_our_own_errors_and_faults_in_our_code_pass_as_they_are() -> None:
    for error in (NotFound("ours"), KeyError("a fault")):
        with pytest.raises(type(error)) as raised, hub_errors("a model"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize("source", ["hub:/etc/models", "hub:../models", "hub:a/b/c", "hub:a b", "hub:a/b@", "hub:"])
def test_invalid_hub_model_is_refused_before_any_request(source: str) -> None:
    with pytest.raises(NotFound, match="Invalid hub model"):
        model_folder(source, "config.json")


def test_download_of_a_model_marks_it_as_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = tmp_path / "models--a--b" / "snapshots" / "main"
    revision.mkdir(parents=True)
    os.utime(tmp_path / "models--a--b", (0, 0))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(revision))
    assert model_folder("hub:a/b") == revision
    assert (tmp_path / "models--a--b").stat().st_mtime > 0


def test_a_folder_does_not_stand_in_for_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refuse_folder("a/c")
    with pytest.raises(InvalidRequest, match="is also a local folder"):
        refuse_folder("a/b")


@pytest.mark.parametrize(
    "names",
    [
        "data_files: http://10.0.0.1/a.csv", "data_files: [a.csv, '/etc/passwd']", "data_files: 'zip://a::b.zip'",
        "data_files: [{split: train, path: 'x:../../etc/passwd'}]", "data_dir: ../other", "data_dir: /etc",
        "data_files: [{split: train, path: [a.csv, 'file:///etc/passwd']}]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_data_files_outside_the_dataset_are_refused(tmp_path: Path, card: str, names: str) -> None:
    write_card(tmp_path / card, names)
    with pytest.raises(InvalidRequest, match="not a path inside the dataset"):
        refuse_outside_files(str(tmp_path))
    with pytest.raises(InvalidRequest, match="not a path inside the dataset"):
        read_hub(HubSource(str(tmp_path)), Findings())
    with pytest.raises(InvalidRequest, match="not a path inside the dataset"):
        next(stream_hub(f"{HUB}{tmp_path}", None, Findings()))


@pytest.mark.parametrize("names", ["data_files: data/*.csv", "data_files: [a/b:c..csv]", "data_dir: a..b", "drop: 1"])
def test_data_files_inside_the_dataset_are_accepted(tmp_path: Path, names: str) -> None:
    write_card(tmp_path / "README.md", names)
    refuse_outside_files(str(tmp_path))


def test_card_is_read_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    write_card(tmp_path / "card", "data_files: /etc/passwd")

    def download(path: str, name: str, **options: object) -> str:
        assert (path, options) == ("a/b", {"repo_type": "dataset", "revision": "v1"})
        if name == "README.md":
            raise of_hub("EntryNotFoundError")()
        return str(tmp_path / "card")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InvalidRequest, match=r"\.huggingface\.yaml of the hub dataset a/b"):
        refuse_outside_files("a/b", "v1")


def test_dataset_is_not_loaded_if_its_card_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=of_hub("LocalEntryNotFoundError")()))
    with pytest.raises(Unavailable), hub_errors("the dataset"):
        refuse_outside_files("a/b")


def write_card(path: Path, names: str) -> None:
    configs = f"configs:\n- config_name: default\n  {names}\n"
    path.write_text(f"---\n{configs}---\nText\n" if path.suffix == ".md" else configs)
