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
from tests.contract.retriever_harness import PASSAGES, RetrieverHarness, wait_while
from tests.contract.selection_indexes import KINDS
from tests.support import no_file_larger_than
from tlm_core.errors import CorruptArtifact, EmptySelection, IndexUnavailable, NotFound, StorageFull
from tlm_core.selection.selectors import SELECTORS


@pytest.fixture(params=KINDS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RetrieverHarness]:
    url = request.getfixturevalue("opensearch_url") if request.param == "opensearch" else "http://127.0.0.1:1"
    harness = RetrieverHarness(tmp_path, request.param, url)
    yield harness
    with harness.retriever() as api:
        api.delete_corpus(*harness.key)


@pytest.fixture
def api(harness: RetrieverHarness) -> Iterator[RetrieverClient]:
    with harness.retriever() as client:
        yield client


def test_corpus_is_loaded_and_searched(harness: RetrieverHarness, api: RetrieverClient) -> None:
    assert api.corpus(*harness.key).state == "unknown"
    load = harness.load(api)
    assert (load.state, load.count, load.loaded) == ("ready", 200, 200)
    hits = api.search(*harness.key, "word1 word2", 3)
    assert [hit.id for hit in hits] == sorted(hit.id for hit in hits)
    assert hits[0].text in {text for _, text, _ in PASSAGES} and hits[0].score > 0
    assert api.search(*harness.key, "unknown-word", 3) == []
    api.put_corpus(*harness.key, folder="t/corpus", language="en")
    assert api.corpus(*harness.key).state == "ready"


def test_selection_is_written_to_its_prefix(harness: RetrieverHarness, api: RetrieverClient) -> None:
    harness.load(api)
    run = harness.select(api)
    assert (run.state, run.done, run.total, run.error) == ("ready", 3, 3, None)
    assert run.ref is not None and run.ref.folder == "t/artifacts/a/1"
    manifest = harness.store.verify(run.ref)
    assert (manifest.artifact, manifest.stage) == ("art_1", "select")
    folder = harness.store.localize(run.ref)
    facts = json.loads((folder / "selection.json").read_text())
    assert facts["queries"]["without_hit"] == {"count": 1, "rows": [3]}
    assert facts["corpus"] == {"name": harness.key.name, "version": "v1", "passages": 200}
    assert len(pq.read_table(folder / "passages.parquet")) == facts["passages"] == 10
    assert list((harness.folder / "scratch" / "selections").iterdir()) == []


def test_equal_selections_have_equal_digests(harness: RetrieverHarness, api: RetrieverClient) -> None:
    harness.load(api)
    first, second = (harness.select(api, "art_1", prefix=f"t/artifacts/a/{n}").ref for n in (1, 2))
    assert first is not None and second is not None
    assert (first.digest, first.folder) == (second.digest, "t/artifacts/a/1") and second.folder == "t/artifacts/a/2"


def test_repeated_request_reuses_the_selection_also_after_a_restart(harness: RetrieverHarness) -> None:
    with harness.retriever() as api:
        harness.load(api)
        ref = harness.select(api).ref
        written = (harness.folder / "storage" / "t/artifacts/a/1" / "manifest.json").stat().st_mtime_ns
        assert harness.select(api).ref == ref
    with harness.retriever() as api:
        assert api.get_selection("art_1").state == "unknown"
        assert api.corpus(*harness.key).state == "ready"
        assert harness.select(api).ref == ref
    assert (harness.folder / "storage" / "t/artifacts/a/1" / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("lost", ["everything", "a file", "half of a file"])
@pytest.mark.parametrize("again", ["t/artifacts/a/1", "t/artifacts/a/2"])
def test_selection_with_lost_files_is_computed_again(
    harness: RetrieverHarness, api: RetrieverClient, lost: str, again: str
) -> None:
    harness.load(api)
    before = harness.select(api).ref
    assert before is not None
    path = harness.store.localize(before) / "passages.parquet"
    if lost == "everything":
        harness.store.delete(before.folder)
    elif lost == "a file":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert api.get_selection("art_1").state == "unknown"
    after = harness.select(api, prefix=again).ref
    assert after is not None and (after.digest, after.folder) == (before.digest, again)
    harness.store.verify(after)


def test_selection_on_a_full_disk_fails_and_leaves_no_file(harness: RetrieverHarness, api: RetrieverClient) -> None:
    harness.load(api)
    with no_file_larger_than(500):
        run = harness.select(api)
    assert run.state == "failed" and isinstance(run.failure, StorageFull)
    assert list((harness.folder / "scratch" / "selections").iterdir()) == []


def test_lost_index_is_built_again_from_storage(harness: RetrieverHarness) -> None:
    with harness.retriever() as api:
        before = harness.load(api)
        hits = api.search(*harness.key, "word3", 5)
    if harness.settings.index == "embedded":
        shutil.rmtree(harness.folder / "scratch")
    else:
        from services.retriever.cluster import connect
        from services.retriever.indexes import OpenSearchIndexes

        cluster = connect(harness.settings.opensearch_url)
        OpenSearchIndexes(cluster, shards=1).drop(harness.key)
        cluster.close()
    with harness.retriever() as api:
        assert api.corpus(*harness.key).state == "unknown"
        with pytest.raises(IndexUnavailable, match="being loaded"):
            api.search(*harness.key, "word3", 5)
        assert wait_while(lambda: api.corpus(*harness.key), "loading") == before
        assert api.search(*harness.key, "word3", 5) == hits


def test_corpus_that_was_never_loaded_is_not_found(harness: RetrieverHarness, api: RetrieverClient) -> None:
    with pytest.raises(NotFound, match="was never loaded"):
        api.search(*harness.key, "q", 3)
    run = harness.select(api)
    assert run.state == "failed" and isinstance(run.failure, NotFound)
    api.delete_corpus(*harness.key)


@pytest.mark.parametrize("harness", KINDS[1:], indirect=True)
def test_passage_that_opensearch_refuses_is_reported_with_the_reason(
    harness: RetrieverHarness, api: RetrieverClient
) -> None:
    harness.write_corpus([*PASSAGES, ("x" * 600, "an id that is too long", "s")])
    load = harness.load(api)
    assert (load.state, load.count, load.loaded, load.refused) == ("ready", 201, 201, 1)
    [refused] = api.refused(*harness.key)
    assert refused.text == "an id that is too long" and "too long" in refused.reason
    assert len(api.search(*harness.key, "passage", 1000)) == 200


def test_deleted_corpus_is_not_found(harness: RetrieverHarness, api: RetrieverClient) -> None:
    harness.load(api)
    api.delete_corpus(*harness.key)
    assert api.corpus(*harness.key).state == "unknown"
    with pytest.raises(NotFound):
        api.search(*harness.key, "word1", 3)
    assert harness.load(api).state == "ready"


def test_task_that_shares_no_word_fails_once(harness: RetrieverHarness, api: RetrieverClient) -> None:
    harness.load(api)
    run = harness.select(api, task=harness.write_task(["zebra", "gnu"]))
    assert run.state == "failed" and isinstance(run.failure, EmptySelection)
    assert harness.select(api, task=harness.task).state == "failed", "the same attempt is not repeated"


@pytest.mark.parametrize(
    ("damage", "message"),
    [("repeated id", "its own id"), ("no parquet", "Upload"), ("truncated", "complete"), ("no text", "text")],
)
def test_invalid_corpus_fails_and_is_never_searched(
    harness: RetrieverHarness, api: RetrieverClient, damage: str, message: str
) -> None:
    path = harness.folder / "storage" / "t" / "corpus" / "passages-00000.parquet"
    if damage == "repeated id":
        harness.write_corpus([*PASSAGES, PASSAGES[3]])
    elif damage == "no parquet":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        pq.write_table(pa.table({"id": ["a"]}), path)
    load = harness.load(api)
    assert load.state == "failed" and load.failure is not None
    assert message in str(load.failure)
    with pytest.raises((CorruptArtifact, NotFound, type(load.failure))):
        api.search(*harness.key, "word1", 3)
    harness.write_corpus(PASSAGES)
    assert harness.load(api).state == "ready"


def test_several_files_form_one_corpus_in_its_language(harness: RetrieverHarness, api: RetrieverClient) -> None:
    harness.write_corpus([("j1", "自然言語処理の研究", "s"), ("j2", "今日は良い天気", "s")], "passages-00001.parquet")
    assert harness.load(api, language="ja").count == 202
    assert [hit.id for hit in api.search(*harness.key, "言語の処理", 2)] == ["j1"]


def test_query_in_another_normal_form_has_the_same_hits(harness: RetrieverHarness, api: RetrieverClient) -> None:
    harness.write_corpus([("c1", "un élève déjà", "s")])
    harness.load(api, language="fr")
    assert [hit.id for hit in api.search(*harness.key, "e\u0301le\u0300ve", 2)] == ["c1"]


SCANS = [name for name, selector in SELECTORS.items() if selector.source == "corpus" and selector.size != "queries"]


@pytest.mark.parametrize("selector", SCANS)
def test_every_selector_works_with_each_index(harness: RetrieverHarness, api: RetrieverClient, selector: str) -> None:
    harness.load(api)
    run = harness.select(api, params={"selector": selector, "max_passages": 20})
    assert run.state == "ready" and run.ref is not None, run
    folder = harness.store.localize(run.ref)
    passages = pq.read_table(folder / "passages.parquet")
    assert len(set(passages["id"].to_pylist())) == 20 and passages["rank"].to_pylist() == list(range(1, 21))
    assert (None in passages["score"].to_pylist()) == (selector in ("random", "whole"))
    assert list((harness.folder / "scratch" / "selections").iterdir()) == []
