"""Data sets and corpora."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tlm_client.download import fetch_file
from tlm_client.operations.base import RESUMABLE_BYTES, at, model, pages, patient, sent_in_parts, size_of, upload
from tlm_client.steps import Ask, Listing, Sleep, call
from tlm_core.artifacts import FileEntry
from tlm_core.errors import Conflict, TLMError, error_from_dict
from tlm_core.wire import Corpus, CorpusLoad, Dataset, DatasetCreated, Hit, RefusedPassage

POLL_SECONDS = 0.5


def add_dataset(
    name: str,
    files: Mapping[str, Path],
    options: Mapping[str, Any] | None = None,
    *,
    in_parts_from: int = RESUMABLE_BYTES,
) -> Ask[DatasetCreated]:
    """Upload a data set: `files` by split (train, and validation and test if there are). Options: DatasetOptions.

    A file `selection` (text, rank) beside them is what the selector `given` takes. in_parts_from: bytes from which on
    the files go in parts, which outlasts a broken connection. Raises InvalidDataset with every fault found, by split,
    row and column.
    """
    if size_of(files.values()) >= in_parts_from:
        body = {"name": name, "options": dict(options or {})}
        answer = yield from sent_in_parts("/v1/datasets/from-uploads", body, list(files.items()), listed=False)
    else:
        form = {"name": name, "options": json.dumps(dict(options or {}))}
        answer = yield from upload("/v1/datasets", form, list(files.items()))
    return model(DatasetCreated, answer)


def add_hub_dataset(
    name: str, hub: str, options: Mapping[str, Any] | None = None, *, selection: str | None = None
) -> Ask[DatasetCreated]:
    """Let the gateway load `hub:OWNER/NAME[@revision][:config]`. selection: a file of it with passages (text, rank)."""
    body = {"name": name, "hub": hub.removeprefix("hub:"), "options": dict(options or {}), "selection": selection}
    return model(DatasetCreated, (yield from call("POST", "/v1/datasets/hub", json=body, timeout=patient())))


def datasets() -> Listing[Dataset]:
    """All data sets, newest first."""
    return pages(Dataset, "/v1/datasets", lambda dataset: dataset.id)


def dataset(id_or_name: str) -> Ask[Dataset]:
    """By id, by name for its newest version, by NAME@vNUMBER or NAME@DIGEST."""
    return model(Dataset, (yield from call("GET", at("/v1/datasets/{one}", one=id_or_name), repeat=True)))


def dataset_report(id_or_name: str) -> Ask[dict[str, Any]]:
    """The validation report: labels, counts, lengths, duplicates, warnings, and what was guessed and why."""
    return dict((yield from call("GET", at("/v1/datasets/{one}/report", one=id_or_name), repeat=True)))


def dataset_preview(id_or_name: str) -> Ask[list[dict[str, Any]]]:
    """The first rows as they were read."""
    return list((yield from call("GET", at("/v1/datasets/{one}/preview", one=id_or_name), repeat=True))["data"])


def download_dataset(id_or_name: str, folder: Path) -> Ask[list[Path]]:
    """Fetch the files of a data set as they were uploaded, named by their split, checked by SHA-256."""
    base = at("/v1/datasets/{one}/files", one=id_or_name)
    found = []
    for entry in (yield from call("GET", base, repeat=True))["data"]:
        file = model(FileEntry, entry)
        found.append((yield from fetch_file(f"{base}/{at('{name}', name=file.name)}", file, folder)))
    return found


def delete_dataset(dataset_id: str, *, with_jobs: bool = False) -> Ask[None]:
    """with_jobs: the jobs on it and their models too. Raises Conflict while a job that is not over needs it."""
    yield from call("DELETE", at("/v1/datasets/{one}", one=dataset_id), params={"with_jobs": with_jobs})


def add_corpus(
    name: str,
    files: Sequence[Path],
    language: str = "en",
    *,
    near_duplicates: Literal["drop", "keep"] = "drop",
    in_parts_from: int = RESUMABLE_BYTES,
) -> Ask[CorpusLoad]:
    """Upload files as the next version of a corpus; `wait_corpus` tells when it can be used.

    near_duplicates: what becomes of passages that are nearly equal to an earlier one. in_parts_from: bytes from which
    on the files go in parts, which outlasts a broken connection.
    """
    form = {"name": name, "language": language, "near_duplicates": near_duplicates}
    fields = [("files", path) for path in files]
    if size_of(files) >= in_parts_from:
        answer = yield from sent_in_parts("/v1/corpora/from-uploads", form, fields, listed=True)
    else:
        answer = yield from upload("/v1/corpora", form, fields)
    return model(CorpusLoad, answer)


def fetch_corpus(
    name: str, sources: Sequence[str], language: str = "en", *, near_duplicates: Literal["drop", "keep"] = "drop"
) -> Ask[CorpusLoad]:
    """Have the service fetch addresses (`s3://…`, `hub:…`) as the next version of a corpus, with its own rights.

    Raises InvalidRequest for an address that its operator does not allow.
    """
    body = {"name": name, "language": language, "near_duplicates": near_duplicates, "sources": list(sources)}
    return model(CorpusLoad, (yield from call("POST", "/v1/corpora/from-sources", json=body)))


def wait_corpus(name: str, load_id: str, on_progress: Callable[[CorpusLoad], None] | None = None) -> Ask[CorpusLoad]:
    """Wait until an upload can be used. Raises the error for which it failed, Conflict if it was cancelled."""
    path = at("/v1/corpora/{name}/loads/{load}", name=name, load=load_id)
    while True:
        load = model(CorpusLoad, (yield from call("GET", path, repeat=True)))
        if on_progress is not None:
            on_progress(load)
        if load.state == "ready":
            return load
        if load.state == "failed":
            raise error_from_dict(load.error) if load.error else TLMError(f"loading corpus '{name}' failed")
        if load.state == "cancelled":
            raise Conflict(f"the upload of corpus '{name}' was cancelled; add it again")
        yield Sleep(POLL_SECONDS)


def cancel_load(name: str, load_id: str) -> Ask[CorpusLoad]:
    """Give an upload up: `cancelling` until nothing of it is left. Versions from before stay; twice is no error."""
    path = at("/v1/corpora/{name}/loads/{load}/cancel", name=name, load=load_id)
    return model(CorpusLoad, (yield from call("POST", path)))


def corpora() -> Listing[Corpus]:
    """All corpora by name."""
    return pages(Corpus, "/v1/corpora", lambda corpus: corpus.name)


def corpus(name: str) -> Ask[Corpus]:
    """Its versions and latest uploads."""
    return model(Corpus, (yield from call("GET", at("/v1/corpora/{name}", name=name), repeat=True)))


def delete_corpus(name: str, version: str | None = None) -> Ask[None]:
    """Delete a corpus, or one version of it. Raises Conflict while a job that is not over needs it."""
    if version is None:
        yield from call("DELETE", at("/v1/corpora/{name}", name=name))
    else:
        yield from call("DELETE", at("/v1/corpora/{name}/versions/{version}", name=name, version=version))


def refused_passages(name: str, version: str) -> Ask[list[RefusedPassage]]:
    """The passages of a version that the index would not take, each with the reason."""
    path = at("/v1/corpora/{name}/versions/{version}/refused", name=name, version=version)
    found = yield from call("GET", path, repeat=True)
    return [model(RefusedPassage, entry) for entry in found["data"]]


def search(name: str, query: str, k: int = 10) -> Ask[list[Hit]]:
    """The best passages of a corpus for a query, best first."""
    path = at("/v1/corpora/{name}/search", name=name)
    found = yield from call("POST", path, json={"query": query, "k": k}, repeat=True)
    return [model(Hit, hit) for hit in found["hits"]]
