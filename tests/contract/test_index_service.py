"""The retriever over HTTP with each kind of index: loads, searches, selections and restarts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.common.retriever_client import RetrieverClient
from tests.contract.retriever_place import PASSAGES, Place, settled
from tests.contract.selection_indexes import KINDS
from tests.support import no_file_larger_than
from tlm_core.errors import CorruptArtifact, EmptySelection, IndexUnavailable, NotFound, StorageFull
from tlm_core.selection.selectors import SELECTORS


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    url = request.getfixturevalue("opensearch_url") if request.param == "opensearch" else "http://127.0.0.1:1"
    place = Place(tmp_path, request.param, url)
    yield place
    with place.retriever() as api:
        api.delete_corpus(*place.key)


@pytest.fixture
def api(place: Place) -> Iterator[RetrieverClient]:
    with place.retriever() as client:
        yield client


def test_corpus_is_loaded_and_searched(place: Place, api: RetrieverClient) -> None:
    assert api.corpus(*place.key).state == "unknown"
    load = place.load(api)
    assert (load.state, load.count, load.loaded) == ("ready", 200, 200)
    hits = api.search(*place.key, "word1 word2", 3)
    assert [hit.id for hit in hits] == sorted(hit.id for hit in hits)
    assert hits[0].text in {text for _, text, _ in PASSAGES} and hits[0].score > 0
    assert api.search(*place.key, "unknown-word", 3) == []
    api.put_corpus(*place.key, folder="t/corpus", language="en")
    assert api.corpus(*place.key).state == "ready"


def test_selection_is_written_to_its_prefix(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    run = place.select(api)
    assert (run.state, run.done, run.total, run.error) == ("ready", 3, 3, None)
    assert run.ref is not None and run.ref.folder == "t/artifacts/a/1"
    manifest = place.store.verify(run.ref)
    assert (manifest.artifact, manifest.stage) == ("art_1", "select")
    folder = place.store.localize(run.ref)
    facts = json.loads((folder / "selection.json").read_text())
    assert facts["queries"]["without_hit"] == {"count": 1, "rows": [3]}
    assert facts["corpus"] == {"name": place.key.name, "version": "v1", "passages": 200}
    assert len(pq.read_table(folder / "passages.parquet")) == facts["passages"] == 10
    assert list((place.folder / "scratch" / "selections").iterdir()) == []


def test_equal_selections_have_equal_digests(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    first, second = (place.select(api, "art_1", prefix=f"t/artifacts/a/{n}").ref for n in (1, 2))
    assert first is not None and second is not None
    assert (first.digest, first.folder) == (second.digest, "t/artifacts/a/1") and second.folder == "t/artifacts/a/2"


def test_repeated_request_reuses_the_selection_also_after_a_restart(place: Place) -> None:
    with place.retriever() as api:
        place.load(api)
        ref = place.select(api).ref
        written = (place.folder / "storage" / "t/artifacts/a/1" / "manifest.json").stat().st_mtime_ns
        assert place.select(api).ref == ref
    with place.retriever() as api:
        assert api.get_selection("art_1").state == "unknown"
        assert api.corpus(*place.key).state == "ready"
        assert place.select(api).ref == ref
    assert (place.folder / "storage" / "t/artifacts/a/1" / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("lost", ["everything", "a file", "half of a file"])
@pytest.mark.parametrize("again", ["t/artifacts/a/1", "t/artifacts/a/2"])
def test_selection_with_lost_files_is_computed_again(place: Place, api: RetrieverClient, lost: str, again: str) -> None:
    place.load(api)
    before = place.select(api).ref
    assert before is not None
    path = place.store.localize(before) / "passages.parquet"
    if lost == "everything":
        place.store.delete(before.folder)
    elif lost == "a file":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert api.get_selection("art_1").state == "unknown"
    after = place.select(api, prefix=again).ref
    assert after is not None and (after.digest, after.folder) == (before.digest, again)
    place.store.verify(after)


def test_selection_on_a_full_disk_fails_and_leaves_no_file(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    with no_file_larger_than(500):
        run = place.select(api)
    assert run.state == "failed" and isinstance(run.failure, StorageFull)
    assert list((place.folder / "scratch" / "selections").iterdir()) == []


def test_lost_index_is_built_again_from_storage(place: Place) -> None:
    with place.retriever() as api:
        before = place.load(api)
        hits = api.search(*place.key, "word3", 5)
    if place.settings.index == "embedded":
        shutil.rmtree(place.folder / "scratch")
    else:
        from services.retriever.cluster import connect
        from services.retriever.indexes import OpenSearchIndexes

        cluster = connect(place.settings.opensearch_url)
        OpenSearchIndexes(cluster, shards=1).drop(place.key)
        cluster.close()
    with place.retriever() as api:
        assert api.corpus(*place.key).state == "unknown"
        with pytest.raises(IndexUnavailable, match="being loaded"):
            api.search(*place.key, "word3", 5)
        assert settled(lambda: api.corpus(*place.key), "loading") == before
        assert api.search(*place.key, "word3", 5) == hits


def test_corpus_that_was_never_loaded_is_not_found(place: Place, api: RetrieverClient) -> None:
    with pytest.raises(NotFound, match="Load it first"):
        api.search(*place.key, "q", 3)
    run = place.select(api)
    assert run.state == "failed" and isinstance(run.failure, NotFound)
    api.delete_corpus(*place.key)


@pytest.mark.parametrize("place", KINDS[1:], indirect=True)
def test_passage_that_opensearch_refuses_is_reported_with_the_reason(place: Place, api: RetrieverClient) -> None:
    place.write_corpus([*PASSAGES, ("x" * 600, "an id that is too long", "s")])
    load = place.load(api)
    assert (load.state, load.count, load.loaded, load.refused) == ("ready", 201, 201, 1)
    [refused] = api.refused(*place.key)
    assert refused.text == "an id that is too long" and "too long" in refused.reason
    assert len(api.search(*place.key, "passage", 1000)) == 200


def test_deleted_corpus_is_not_found(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    api.delete_corpus(*place.key)
    assert api.corpus(*place.key).state == "unknown"
    with pytest.raises(NotFound):
        api.search(*place.key, "word1", 3)
    assert place.load(api).state == "ready"


def test_task_that_shares_no_word_fails_once(place: Place, api: RetrieverClient) -> None:
    place.load(api)
    run = place.select(api, task=place.write_task(["zebra", "gnu"]))
    assert run.state == "failed" and isinstance(run.failure, EmptySelection)
    assert place.select(api, task=place.task).state == "failed", "the same attempt is not repeated"


@pytest.mark.parametrize(
    ("damage", "message"),
    [("repeated id", "unique"), ("no parquet", "Upload"), ("truncated", "complete"), ("no text", "text")],
)
def test_invalid_corpus_fails_and_is_never_searched(
    place: Place, api: RetrieverClient, damage: str, message: str
) -> None:
    path = place.folder / "storage" / "t" / "corpus" / "passages-00000.parquet"
    if damage == "repeated id":
        place.write_corpus([*PASSAGES, PASSAGES[3]])
    elif damage == "no parquet":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        pq.write_table(pa.table({"id": ["a"]}), path)
    load = place.load(api)
    assert load.state == "failed" and load.failure is not None
    assert message in str(load.failure)
    with pytest.raises((CorruptArtifact, NotFound, type(load.failure))):
        api.search(*place.key, "word1", 3)
    place.write_corpus(PASSAGES)
    assert place.load(api).state == "ready"


def test_several_files_form_one_corpus_in_its_language(place: Place, api: RetrieverClient) -> None:
    place.write_corpus([("j1", "自然言語処理の研究", "s"), ("j2", "今日は良い天気", "s")], "passages-00001.parquet")
    assert place.load(api, language="ja").count == 202
    assert [hit.id for hit in api.search(*place.key, "言語の処理", 2)] == ["j1"]


SCANS = [name for name, selector in SELECTORS.items() if selector.source == "corpus" and selector.size != "queries"]


@pytest.mark.parametrize("selector", SCANS)
def test_every_selector_works_with_each_index(place: Place, api: RetrieverClient, selector: str) -> None:
    place.load(api)
    run = place.select(api, params={"selector": selector, "max_passages": 20})
    assert run.state == "ready" and run.ref is not None, run
    folder = place.store.localize(run.ref)
    passages = pq.read_table(folder / "passages.parquet")
    assert len(set(passages["id"].to_pylist())) == 20 and passages["rank"].to_pylist() == list(range(1, 21))
    assert (None in passages["score"].to_pylist()) == (selector in ("random", "whole"))
    assert list((place.folder / "scratch" / "selections").iterdir()) == []
