"""Corpora over HTTP: an accepted upload becomes searchable, whichever process fails."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from fastapi.testclient import TestClient

from services.common.catalog import Catalog
from services.common.catalog_records import CorpusLoad
from services.loader import loads as loads_module
from services.loader.loads import LoadWorker
from tests.contract.corpora import LINES, T, idle_corpus, post, queue_load, wait_for_corpus
from tests.contract.gateway import Gateway, make_gateway, restarted
from tests.support import passages_in, wait_for
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus import near
from tlm_core.corpus import read as corpus_read
from tlm_core.corpus.states import LoadState
from tlm_core.errors import IndexMismatch, IndexUnavailable, StorageFull, StoreUnavailable, Unavailable


def test_uploaded_corpus_becomes_a_searchable_version(api: TestClient, gateway: Gateway) -> None:
    answer = post(api, language="de")
    assert answer.status_code == 202, answer.text
    load = answer.json()
    assert (load["corpus"], load["version"], load["error"]) == ("docs", None, None)
    corpus = wait_for_corpus(api)
    (version,) = corpus["versions"]
    assert (version["state"], version["language"], corpus["version"]) == ("ready", "de", version["version"])
    assert version["count"] == corpus["loads"][0]["done"] > 0
    assert api.get(f"/v1/corpora/docs/loads/{load['id']}").json() == corpus["loads"][0]
    put = [
        body
        for method, path, body in gateway.retriever.requests
        if method == "PUT" and path.endswith(version["version"])
    ]
    assert put == [{"folder": f"default/corpora/docs/{version['version']}", "language": "de"}]
    ref = gateway.parts.catalog.corpus(T, "docs").versions[0].passages
    names = [f.name for f in gateway.parts.artifacts.verify(ref).files]
    assert names == ["corpus.json", "passages-00000.parquet"]
    wait_for(lambda: not [p for p in gateway.leftovers() if "uploads" in p or p.startswith("scratch")] or None)
    searched = api.post("/v1/corpora/docs/search", json={"query": "thing", "k": 3}).json()
    assert searched["version"] == version["version"]
    assert searched["hits"][0]["text"] == "about thing"


def test_only_changed_texts_create_a_new_version(api: TestClient) -> None:
    post(api)
    first = wait_for_corpus(api)["version"]
    post(api, text=LINES.replace("sentence", "phrase"))
    corpus = wait_for(lambda: (c := idle_corpus(api, "docs")) and len(c["versions"]) == 2 and c)
    second = corpus["version"]
    assert second != first
    post(api)
    corpus = wait_for(lambda: (c := idle_corpus(api, "docs")) and len(c["loads"]) == 3 and c)
    assert {v["version"] for v in corpus["versions"]} == {first, second}
    assert corpus["version"] == first, "The name means the last upload."
    old = api.post("/v1/corpora/docs/search", json={"query": "x", "version": second})
    assert old.json()["version"] == second
    assert [c["name"] for c in api.get("/v1/corpora").json()["data"]] == ["docs"]


@pytest.mark.parametrize(
    ("text", "name", "file", "data", "message"),
    [
        (LINES, "a@b", "a.jsonl", {}, "Invalid name 'a@b'"),
        (LINES, "docs", "a.exe", {}, "Unknown file type of 'a.exe'"),
        (LINES, "docs", "a.jsonl", {"language": "english"}, "Invalid language 'english'"),
        (LINES, "docs", "a.jsonl", {"version": "1"}, "The form has no text field 'version'"),
    ],
)
def test_invalid_corpus_form_is_refused(
    api: TestClient, gateway: Gateway, text: str, name: str, file: str, data: dict[str, str], message: str
) -> None:
    answer = post(api, text, name, file, **data)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert gateway.leftovers() == []
    assert api.get("/v1/corpora").json()["data"] == []


def test_near_duplicates_are_dropped_by_default(api: TestClient, gateway: Gateway) -> None:
    words = " ".join(f"word{n}" for n in range(100))
    texts = (words, f"{words} more", words, " ".join(f"other{n}" for n in range(100)))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    seen = {}
    for choice in ("drop", "keep"):
        load = post(api, lines, choice, near_duplicates=choice).json()
        assert load["near_duplicates"] == choice
        (version,) = wait_for_corpus(api, choice)["versions"]
        assert (version["near_duplicates_seconds"] is None) == (choice == "keep")
        seen[choice] = (version["count"], version["duplicates_dropped"], version["near_duplicates_dropped"])
    assert seen == {"drop": (2, 1, 1), "keep": (3, 1, None)}
    assert post(api, lines, "third").json()["near_duplicates"] == "drop", "This is the default."
    wait_for_corpus(api, "third")
    wait_for(lambda: not [path for path in gateway.leftovers() if path.startswith("scratch/work")] or None)
    assert post(api, lines, near_duplicates="both").status_code == 422


@pytest.mark.parametrize("text", ["", '{"text": 3}\n', '{"text": "x"\n'])
def test_invalid_files_fail_the_load_with_every_error(api: TestClient, gateway: Gateway, text: str) -> None:
    post(api, text)
    corpus = wait_for_corpus(api)
    load = corpus["loads"][0]
    assert (load["state"], load["error"]["code"]) == ("failed", "invalid_dataset")
    assert load["error"]["facts"]["faults"]
    assert (corpus["version"], corpus["versions"]) == (None, [])
    wait_for(lambda: gateway.leftovers() == [])
    refused = api.post("/v1/corpora/docs/search", json={"query": "x"})
    assert (refused.status_code, refused.json()["facts"]["state"]) == (409, "failed")


def test_unavailable_retriever_delays_a_load(api: TestClient, gateway: Gateway) -> None:
    gateway.retriever.unavailable = True
    post(api)
    wait_for(lambda: api.get("/v1/corpora/docs").json()["loads"][0]["state"] == "indexing")
    assert api.post("/v1/corpora/docs/search", json={"query": "x"}).status_code == 409
    gateway.retriever.unavailable = False
    assert wait_for_corpus(api)["version"]


def test_load_fails_only_on_a_permanent_retriever_error(api: TestClient, gateway: Gateway) -> None:
    gateway.retriever.failure = IndexUnavailable("the index is away").as_dict()
    post(api)
    wait_for(lambda: sum(m == "PUT" for m, _, _ in gateway.retriever.requests) >= 2)
    assert api.get("/v1/corpora/docs").json()["loads"][0]["state"] == "indexing"
    gateway.retriever.failure = IndexMismatch("this index is not ours").as_dict()
    corpus = wait_for_corpus(api)
    assert corpus["loads"][0]["error"]["code"] == corpus["versions"][0]["error"]["code"] == "index_mismatch"


def test_full_disk_delays_a_load_and_keeps_its_upload(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_id, full = queue_load(gateway), StorageFull("The disk has only 0 MiB of free space.")
    again, splits = restarted(gateway), Mock(wraps=corpus_read.source_files)
    monkeypatch.setattr(corpus_read, "source_files", splits)
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "check_space", Mock(side_effect=full))
        for _ in range(3):
            again.loads.round()
    assert [record.message for record in caplog.records if "waits" in record.message] == [
        f"Load {load_id} of corpus docs waits: {full}"
    ]
    assert gateway.parts.catalog.load(T, load_id).waiting == full.message
    assert not splits.called, "Without space for the passages, the upload is not split."
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "write", Mock(side_effect=full))
        again.loads.round()
    assert gateway.parts.catalog.load(T, load_id).state is LoadState.CUTTING
    again.retriever.failure = full.as_dict()
    for _ in range(3):
        again.loads.round()
    assert gateway.parts.catalog.load(T, load_id).state is LoadState.INDEXING
    again.retriever.failure = None
    for _ in range(3):
        again.loads.round()
    ready = gateway.parts.catalog.load(T, load_id)
    assert (ready.state, ready.waiting) == (LoadState.READY, "")


def test_load_fetches_an_unavailable_source_rarely(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_id, catalog, saved = queue_load(gateway), gateway.parts.catalog, list[str]()
    loads, (shortest, longest) = restarted(gateway).loads, loads_module._FETCH_DELAYS
    catalog.lease_load(T, load_id, "test", 60)
    catalog.save_load(catalog.load(T, load_id).model_copy(update={"sources": ("hub:a/b",)}), "test")
    gateway.client.delete(f"tlm:{{{T}}}:load-lease:{load_id}")
    away, save = Mock(side_effect=Unavailable("The hub is away.")), Catalog.save_load

    def save_load(self: Catalog, load: CorpusLoad, *args: Any) -> None:
        saved.append(load.waiting)
        save(self, load, *args)

    monkeypatch.setattr(Catalog, "save_load", save_load)
    monkeypatch.setattr(corpus_read, "source_files", away)
    for _ in range(3):
        loads.round()
    assert (away.call_count, loads._delays[load_id][0]) == (1, shortest)
    for _ in range(5):
        loads._delays[load_id] = loads._delays[load_id][0], 0.0  # as if the time had passed
        loads.round()
    assert (away.call_count, loads._delays[load_id][0]) == (6, longest)
    assert saved == ["", *["The hub is away."] * 6], "one save per try, and one of the reason"
    assert sum("waits" in record.message for record in caplog.records) == 1


def test_load_waits_until_its_work_folder_can_be_created(gateway: Gateway) -> None:
    load_id, again = queue_load(gateway), restarted(gateway)
    obstacle = again.loads._scratch / "work"
    shutil.rmtree(obstacle, ignore_errors=True)
    obstacle.write_text("")
    again.loads.round()
    waiting = gateway.parts.catalog.load(T, load_id)
    assert (waiting.state, waiting.waiting[:27]) == (LoadState.CUTTING, "Failed splitting the corpus")
    obstacle.unlink()
    again.loads.round()
    assert gateway.parts.catalog.load(T, load_id).state is LoadState.INDEXING


class Killed(BaseException):
    """Simulates the end of the process."""


class KilledStorage(ArtifactStore):
    """Storage of a process that is killed while it writes the passages."""

    def write(self, *_: Any, **__: Any) -> Any:
        raise Killed


def test_next_process_continues_an_open_load(gateway: Gateway) -> None:
    load_id = queue_load(gateway)
    parts = gateway.parts
    dying = KilledStorage(parts.settings.storage, gateway.root / "cache")
    worker = LoadWorker(parts.catalog, dying, parts.retriever, parts.settings.scratch, owner="dead")
    with pytest.raises(Killed):
        worker.round()
    assert parts.catalog.load(T, load_id).state is LoadState.CUTTING
    gateway.loads.round()
    assert parts.catalog.load(T, load_id).state is LoadState.CUTTING, "The lease of the killed process has not expired."
    gateway.client.delete(f"tlm:{{{T}}}:load-lease:{load_id}")  # as if it had expired
    with restarted(gateway).test_client() as api:
        assert wait_for_corpus(api)["loads"][0]["id"] == load_id


def lines_of(name: str) -> str:
    return LINES.replace("thing", name)


def texts_of(names: Sequence[str]) -> list[str]:
    return [json.loads(line)["text"].strip() for name in names for line in lines_of(name).splitlines()]


def queue_files(gateway: Gateway, names: Sequence[str]) -> str:
    """Queue a load of files with five passages each, and return its id."""
    gateway.loads.stop()
    with gateway.test_client() as api:
        files = [("files", (name, lines_of(name))) for name in names]
        return str(api.post("/v1/corpora", data={"name": "docs"}, files=files).json()["id"])


def killed_worker(gateway: Gateway, load_id: str) -> None:
    """Work on a load in a process that is killed, and let its lease expire."""
    parts = gateway.parts
    with pytest.raises(Killed):
        LoadWorker(parts.catalog, parts.artifacts, parts.retriever, parts.settings.scratch, owner="dead").round()
    gateway.client.delete(f"tlm:{{{T}}}:load-lease:{load_id}")


@pytest.mark.parametrize("moment", ["while it reads", "before the record"])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_load_killed_after_some_files_continues_with_the_next(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, done: int, moment: str
) -> None:
    names = ["0.jsonl", "1.jsonl", "2.jsonl"]
    load_id = queue_files(gateway, names)
    split, read, save = list[str](), corpus_read._read_file, Catalog.save_load

    def read_file(file: Any, *args: Any) -> Any:
        split.append(Path(file).name)
        for number, passage in enumerate(read(file, *args)):
            if moment == "while it reads" and number == 2 and len(split) == done + 1:
                raise Killed
            yield passage

    def save_load(self: Catalog, load: CorpusLoad, *args: Any) -> None:
        if moment == "before the record" and len(load.cut) == done + 1:
            raise Killed
        save(self, load, *args)

    monkeypatch.setattr(corpus_read, "_read_file", read_file)
    monkeypatch.setattr(Catalog, "save_load", save_load)
    killed_worker(gateway, load_id)
    monkeypatch.setattr(Catalog, "save_load", save)
    load = gateway.parts.catalog.load(T, load_id)
    assert (len(load.cut), load.done, load.state) == (done, 5 * done, LoadState.CUTTING)
    assert split == names[: done + 1]
    with restarted(gateway).test_client() as api:
        wait_for_corpus(api)
    assert split[done + 1 :] == names[done:], "Files that the record names are not split again."
    folder = gateway.parts.artifacts.localize(gateway.parts.catalog.corpus(T, "docs").versions[0].passages)
    assert [passage.text for passage in passages_in(folder)] == texts_of(names), "No passage is lost or repeated."
    assert not [path for path in gateway.leftovers() if "uploads" in path], "The passages of files are deleted."


class OvertakenStorage(ArtifactStore):
    """Storage of a loader that loses its lease to another loader before it writes."""

    overtake: Callable[[], object] = staticmethod(lambda: None)

    def write(self, *args: Any, **kwargs: Any) -> Any:
        self.overtake()
        return super().write(*args, **kwargs)


def test_loader_without_the_lease_overwrites_no_recorded_file(gateway: Gateway) -> None:
    load_id, parts = queue_load(gateway), gateway.parts
    (uploaded,) = (gateway.root / "storage" / T / "uploads").rglob("*.jsonl")
    storage = OvertakenStorage(parts.settings.storage, gateway.root / "cache")

    def overtake() -> None:
        uploaded.write_text(LINES.replace("thing", "theme"))  # as if a remote source had changed
        gateway.client.delete(f"tlm:{{{T}}}:load-lease:{load_id}")
        restarted(gateway).loads.round()

    storage.overtake = overtake
    LoadWorker(parts.catalog, storage, parts.retriever, parts.settings.scratch).round()
    load = parts.catalog.load(T, load_id)
    assert load.state is LoadState.INDEXING
    for ref in load.cut:
        parts.artifacts.verify(ref)


def test_killed_search_for_near_duplicates_continues(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["0.jsonl", "1.jsonl"]
    load_id = queue_files(gateway, names)
    monkeypatch.setattr(near, "_AT_ONCE", 2)
    searched, signatures = list[str](), near.NearDuplicates._signatures

    def record(self: near.NearDuplicates, texts: Sequence[str]) -> Any:
        if len(searched) == 6:
            raise Killed
        searched.extend(texts)
        return signatures(self, texts)

    monkeypatch.setattr(near.NearDuplicates, "_signatures", record)
    killed_worker(gateway, load_id)
    assert len(gateway.parts.catalog.load(T, load_id).cut) == 2
    searched.append("killed once")
    with restarted(gateway).test_client() as api:
        version = wait_for_corpus(api)["versions"][0]
    assert searched[:6] + searched[7:] == texts_of(names)
    assert version["count"] + version["near_duplicates_dropped"] == 10
    assert not list(gateway.parts.settings.scratch.glob("near/*"))


def test_files_after_one_with_errors_are_checked_too(gateway: Gateway) -> None:
    with gateway.test_client() as api:
        bad = '{"no text": 1}\n'
        files = [("files", (name, text)) for name, text in (("a.jsonl", LINES), ("b.jsonl", bad), ("c.jsonl", bad))]
        api.post("/v1/corpora", data={"name": "docs"}, files=files)
        (load,) = wait_for_corpus(api)["loads"]
    assert load["state"] == "failed"
    assert all(name in str(load["error"]) for name in ("b.jsonl", "c.jsonl"))
    assert gateway.leftovers() == []


def test_load_without_a_record_delays_no_other(gateway: Gateway, redis_client: redis.Redis) -> None:
    gateway.loads.stop()
    redis_client.sadd("tlm:loads", "default/ld_0")
    worker = LoadWorker(gateway.parts.catalog, gateway.parts.artifacts, gateway.parts.retriever, gateway.root)
    worker.round()
    assert list(worker.tasks[0].skipped) == ["load ld_0"]


def test_only_one_gateway_works_on_a_load(gateway: Gateway, redis_client: redis.Redis) -> None:
    other = replace(make_gateway(redis_client, gateway.root), retriever=gateway.retriever)
    with gateway.test_client() as first_api, other.test_client() as second_api:
        for n in range(4):
            post(first_api if n % 2 else second_api, text=LINES.replace("thing", f"thing{n}"), name=f"docs{n}")
        for n in range(4):
            assert wait_for_corpus(first_api, f"docs{n}")["loads"][0]["state"] == "ready"
    assert redis_client.smembers("tlm:loads") == set()


class StaleCatalog(Catalog):
    """A catalog with an outdated list of open loads."""

    old: tuple[tuple[str, str], ...] = ()

    def open_loads(self) -> list[tuple[str, str]]:
        return list(self.old)


def test_load_finished_by_another_process_is_skipped(api: TestClient, gateway: Gateway) -> None:
    load_id = post(api).json()["id"]
    before = wait_for_corpus(api)
    catalog = StaleCatalog(gateway.client)
    catalog.old = ((T, load_id),)
    parts = gateway.parts
    LoadWorker(catalog, parts.artifacts, parts.retriever, parts.settings.scratch).round()
    assert api.get("/v1/corpora/docs").json() == before


def test_files_with_equal_names_are_both_stored(api: TestClient, gateway: Gateway) -> None:
    files = [("files", ("../x/a.jsonl", LINES)), ("files", ("a.jsonl", LINES.replace("thing", "matter")))]
    assert api.post("/v1/corpora", data={"name": "docs"}, files=files).status_code == 202
    both = wait_for_corpus(api)["versions"][0]["count"]
    post(api, name="one")
    assert both == 2 * wait_for_corpus(api, "one")["versions"][0]["count"]
    assert not (gateway.root / "x").exists()


def test_second_upload_during_a_load_is_refused(api: TestClient, gateway: Gateway) -> None:
    gateway.retriever.unavailable = True
    load_id = post(api).json()["id"]
    wait_for(lambda: api.get("/v1/corpora/docs").json()["loads"][0]["state"] == "indexing")
    wait_for(lambda: not any("scratch/near" in name for name in gateway.leftovers()))
    files = gateway.leftovers()
    refused = post(api, text=LINES.replace("thing", "matter"))
    assert (refused.status_code, refused.json()["code"], refused.json()["facts"]["load"]) == (
        409, "already_running", load_id,
    )  # fmt: skip
    assert refused.json()["retryable"], "the same upload succeeds below"
    assert api.delete("/v1/corpora/docs").status_code == 409
    assert gateway.leftovers() == files
    gateway.retriever.unavailable = False
    assert len(wait_for_corpus(api)["versions"]) == 1
    assert post(api, text=LINES.replace("thing", "matter")).status_code == 202


def test_many_small_files_need_one_open_file(api: TestClient) -> None:
    files = [("files", (f"{n}.txt", f"A sentence about the thing number {n}. " * 6)) for n in range(120)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 60, before[1]))
    try:
        answer = api.post("/v1/corpora", data={"name": "docs"}, files=files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert answer.status_code == 202, answer.text


class LostResponse(Catalog):
    """Creates the record, but loses the response of the store."""

    def add_load(self, *args: Any, **kwargs: Any) -> CorpusLoad:
        super().add_load(*args, **kwargs)
        raise StoreUnavailable("Redis does not answer: Timeout reading from socket")


def test_recorded_load_survives_a_lost_store_response(gateway: Gateway) -> None:
    parts = replace(gateway.parts, catalog=LostResponse(gateway.client))
    with replace(gateway, parts=parts).test_client() as api:
        assert post(api).status_code == 503
        assert wait_for_corpus(api)["loads"][0]["state"] == "ready"


def test_refused_passages_are_listed_with_reasons(api: TestClient, gateway: Gateway) -> None:
    gateway.retriever.refused = 2
    post(api)
    version = wait_for_corpus(api)["versions"][0]
    assert version["refused"] == 2
    shown = api.get(f"/v1/corpora/docs/versions/{version['version']}/refused").json()["data"]
    assert [entry["reason"] for entry in shown] == ["id is too long"] * 2
    assert api.get("/v1/corpora/docs/versions/none/refused").status_code == 404
