"""Ids of the hub, and what its library's failures become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from tlm_core.errors import InvalidRequest, NotFound, TLMError, Unavailable
from tlm_core.hub import hub_errors, model_folder, refuse_folder


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


def test_our_own_errors_and_faults_in_our_code_pass_as_they_are() -> None:
    for error in (NotFound("ours"), KeyError("a fault")):
        with pytest.raises(type(error)) as raised, hub_errors("a model"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize("source", ["hub:/etc/models", "hub:../models", "hub:a/b/c", "hub:a b", "hub:a/b@", "hub:"])
def test_invalid_hub_model_is_refused_before_any_request(source: str) -> None:
    with pytest.raises(NotFound, match="Invalid hub model"):
        model_folder(source, "config.json")


def test_a_folder_does_not_stand_in_for_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refuse_folder("a/c")
    with pytest.raises(InvalidRequest, match="is also a local folder"):
        refuse_folder("a/b")
