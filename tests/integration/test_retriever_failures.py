"""Failures of OpenSearch: a selection is retried, or fails with advice. It is never smaller without an error."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.retriever_client import SelectionRun
from services.retriever.cluster import connect
from services.retriever.indexes import OpenSearchIndexes
from services.retriever.opensearch_index import SCHEMA_VERSION, index_body, load_alias
from tests.contract.retriever_harness import PASSAGES, RetrieverHarness
from tests.contract.selection_indexes import new_key
from tests.integration.fake_opensearch import FakeOpenSearch, Override, Reply
from tests.redis_server import free_port
from tests.support import skip_or_fail
from tlm_core.corpus.passages import Passage
from tlm_core.errors import IndexMismatch, IndexUnavailable, NotFound, StorageFull, TLMError

STORED = [Passage(*row) for row in PASSAGES]
COMPLETE = 10  # passages that the three queries of the task hit at top 5


class Retriever:
    """A retriever with a fake cluster."""

    def __init__(self, folder: Path) -> None:
        self.harness = RetrieverHarness(folder, "opensearch", "http://127.0.0.1:1")
        self.cluster = FakeOpenSearch(self.harness.key, STORED)

    def selection(self, *, retry_seconds: float = 20, **settings: Any) -> SelectionRun:
        """Run a selection in a new retriever and return its final state."""
        over = {"opensearch_url": self.cluster.url, "retry_seconds": retry_seconds, **settings}
        self.harness.settings = self.harness.settings.model_copy(update=over)
        with self.harness.retriever() as api:
            return self.harness.select(api)

    def passages_of(self, run: SelectionRun) -> int:
        assert (run.state, run.error) == ("ready", None) and run.ref is not None
        return int(self.harness.store.verify(run.ref).meta["passages"])


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    return Retriever(tmp_path)


@pytest.fixture
def served(retriever: Retriever) -> Iterator[Retriever]:
    with retriever.cluster.serving():
        yield retriever


def times(number: int, end: str, reply: Reply | Callable[[Any], Reply]) -> Override:
    """Answer the first `number` requests whose path ends in `end` with `reply`."""
    remaining = [number]

    def override(requested: str, answer: Any) -> Reply | None:
        if requested != end or not remaining[0]:
            return None
        remaining[0] -= 1
        return reply(answer) if callable(reply) else reply

    return override


def rejected(status: int, kind: str, reason: str = "because") -> Reply:
    return Reply(status, {"error": {"type": kind, "reason": reason, "root_cause": []}, "status": status})


def one_shard_fails(answer: Any) -> Reply:
    """All hits but one, with a shard failure in the response."""
    responses = [dict(response) for response in answer["responses"]]
    failure = {"reason": {"type": "i_o_exception", "reason": "read past EOF"}}
    responses[0] |= {
        "hits": {"hits": responses[0]["hits"]["hits"][1:]},
        "_shards": {"failed": 1, "failures": [failure]},
    }
    return Reply(200, {"responses": responses})


def red(answer: Any) -> Reply:
    cause = {"type": "no_shard_available_action_exception", "reason": "all shards failed"}
    error = {"type": "search_phase_execution_exception", "reason": "all shards failed", "root_cause": [cause]}
    return Reply(200, {"responses": [{"status": 503, "error": error} for _ in answer["responses"]]})


def timed_out(answer: Any) -> Reply:
    part = [{**response, "timed_out": True, "hits": {"hits": []}} for response in answer["responses"]]
    return Reply(200, {"responses": part})


def deleted(answer: Any) -> Reply:
    return Reply(200, {"responses": [rejected(404, "index_not_found_exception").body for _ in answer["responses"]]})


TEMPORARY: dict[str, Reply | Callable[[Any], Reply]] = {
    "429": rejected(429, "circuit_breaking_exception"),
    "503": rejected(503, "cluster_block_exception", "no cluster manager"),
    "cut": Reply(0),
    "one shard failing": one_shard_fails,
    "red index": red,
    "timed out": timed_out,
    "proxy's page": Reply(502, "<html>Bad gateway</html>"),
}


def test_selection_is_complete_without_failures(served: Retriever) -> None:
    assert served.passages_of(served.selection()) == COMPLETE


@pytest.mark.parametrize("override", TEMPORARY)
def test_temporary_failure_is_retried_to_a_complete_selection(served: Retriever, override: str) -> None:
    served.cluster.override = times(3, "_msearch", TEMPORARY[override])
    assert served.passages_of(served.selection()) == COMPLETE
    assert served.cluster.requests.count("_msearch") == 4


@pytest.mark.parametrize("override", TEMPORARY)
def test_lasting_failure_fails_the_selection_which_can_be_repeated(served: Retriever, override: str) -> None:
    served.cluster.override = times(10**6, "_msearch", TEMPORARY[override])
    run = served.selection(retry_seconds=0.3)
    assert (run.state, run.ref) == ("failed", None)
    assert isinstance(run.failure, IndexUnavailable) and run.failure.retryable
    served.cluster.override = times(0, "", Reply(0))
    assert served.passages_of(served.selection()) == COMPLETE


def test_selection_whose_index_is_deleted_can_be_repeated(served: Retriever) -> None:
    served.cluster.override = times(1, "_msearch", deleted)
    run = served.selection()
    assert isinstance(run.failure, IndexUnavailable) and "deleted" in run.failure.message
    assert served.passages_of(served.selection()) == COMPLETE


def test_temporarily_unreadable_passages_are_not_omitted(served: Retriever) -> None:
    def unreadable(answer: Any) -> Reply:
        docs = [{"_id": d["_id"], "error": {"type": "shard", "reason": "away"}} for d in answer["docs"]]
        return Reply(200, {"docs": docs[:1] + answer["docs"][1:]})

    served.cluster.override = times(2, "_mget", unreadable)
    assert served.passages_of(served.selection()) == COMPLETE


def test_cluster_that_starts_later_is_retried(retriever: Retriever) -> None:
    port, finished = free_port(), threading.Event()

    def later() -> None:
        time.sleep(0.5)
        with retriever.cluster.serving(port=port):
            finished.wait(30)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        retriever.cluster.url = f"http://127.0.0.1:{port}"
        assert retriever.passages_of(retriever.selection()) == COMPLETE
    finally:
        finished.set()
        thread.join()


def test_unreachable_cluster_is_reported_with_its_url_setting(retriever: Retriever) -> None:
    retriever.cluster.url = f"http://127.0.0.1:{free_port()}"
    run = retriever.selection(retry_seconds=0.3)
    assert isinstance(run.failure, IndexUnavailable) and "TLM_RETRIEVER_OPENSEARCH_URL" in run.failure.message


@pytest.mark.parametrize("number", ["8.19.2", "9.1.0"])
def test_elasticsearch_is_detected_and_never_used(served: Retriever, number: str) -> None:
    served.cluster.banner = {
        "version": {"number": number, "build_flavor": "default"},
        "tagline": "You Know, for Search",
    }
    run = served.selection()
    assert isinstance(run.failure, IndexMismatch)
    assert f"elasticsearch {number}" in run.failure.message and "TLM_RETRIEVER_OPENSEARCH_URL" in run.failure.message
    assert "_msearch" not in served.cluster.requests


def test_web_page_instead_of_a_cluster_is_reported(served: Retriever) -> None:
    served.cluster.override = times(10**6, "", Reply(200, "<html>Welcome</html>"))
    run = served.selection(retry_seconds=0.3)
    assert isinstance(run.failure, IndexMismatch) and "TLM_RETRIEVER_OPENSEARCH_URL" in run.failure.message


@pytest.mark.parametrize("password", [None, "wrong", "right"])
def test_wrong_password_fails_at_once_and_the_right_one_works(served: Retriever, password: str | None) -> None:
    from pydantic import SecretStr

    served.cluster.password = "right"
    user = {"opensearch_user": "tlm", "opensearch_password": SecretStr(password)} if password else {}
    began = time.monotonic()
    run = served.selection(**user)
    if password == "right":
        assert served.passages_of(run) == COMPLETE
        return
    assert isinstance(run.failure, IndexUnavailable) and "TLM_RETRIEVER_OPENSEARCH_USER" in run.failure.message
    assert "wrong" not in run.failure.message
    assert time.monotonic() - began < 15, "A wrong password is not retried."


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority (ca.pem) and the certificate and key of a server (server.pem)."""
    folder = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    try:
        for arguments in (
            ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ours", "-days", "2",
             "-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:TRUE"],
            ["req", *key, "-keyout", "s.key", "-out", "s.csr", "-subj", "/CN=search", "-addext",
             "subjectAltName=IP:127.0.0.1"],
            ["x509", "-req", "-in", "s.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "s.pem",
             "-days", "2", "-copy_extensions", "copy"],
        ):  # fmt: skip
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        skip_or_fail("no openssl to create a certificate")
    (folder / "server.pem").write_text((folder / "s.pem").read_text() + (folder / "s.key").read_text())
    return folder


def test_private_certificate_authority_is_trusted_by_setting(retriever: Retriever, authority: Path) -> None:
    with retriever.cluster.serving(certificate=authority / "server.pem"):
        began = time.monotonic()
        run = retriever.selection()
        assert isinstance(run.failure, IndexUnavailable) and "TLM_RETRIEVER_OPENSEARCH_CA" in run.failure.message
        assert time.monotonic() - began < 15, "An untrusted certificate is not retried."
        assert retriever.passages_of(retriever.selection(opensearch_ca=authority / "ca.pem")) == COMPLETE


def test_missing_authority_file_is_reported(retriever: Retriever, authority: Path) -> None:
    with (
        retriever.cluster.serving(certificate=authority / "server.pem"),
        pytest.raises(TLMError, match=r"TLM_RETRIEVER_OPENSEARCH_CA.*nowhere"),
    ):
        retriever.selection(opensearch_ca=authority / "nowhere.pem")


# --- a real cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.opensearch
def test_full_disk_fails_the_load_which_resumes_with_space(opensearch_url: str, tmp_path: Path) -> None:
    harness = RetrieverHarness(tmp_path, "opensearch", opensearch_url)
    cluster = connect(opensearch_url, retry_seconds=20)
    indexes = OpenSearchIndexes(cluster, shards=1)
    indexes.begin(harness.key, "en").close()
    settings = f"/tlm-{harness.key.slug}/_settings"
    cluster.call("PUT", settings, body={"index": {"blocks": {"read_only_allow_delete": True}}})
    with harness.retriever() as api:
        load = harness.load(api)
        assert isinstance(load.failure, StorageFull) and "Free some space" in load.failure.message
        cluster.call("PUT", settings, body={"index": {"blocks": {"read_only_allow_delete": None}}})
        assert harness.load(api).state == "ready"
        assert harness.select(api).state == "ready"
        api.delete_corpus(*harness.key)
    cluster.close()


@pytest.mark.opensearch
def test_foreign_index_with_our_name_is_neither_used_nor_changed(opensearch_url: str, tmp_path: Path) -> None:
    harness = RetrieverHarness(tmp_path, "opensearch", opensearch_url)
    cluster = connect(opensearch_url, retry_seconds=20)
    name = f"/tlm-{harness.key.slug}"
    cluster.call("PUT", name, body={"mappings": {"properties": {"text": {"type": "keyword"}}}})
    with harness.retriever() as api:
        load = harness.load(api)
        assert isinstance(load.failure, IndexMismatch) and "Delete the index" in load.failure.message
        assert isinstance(harness.select(api).failure, IndexMismatch)
    assert cluster.call("GET", name)[name[1:]]["mappings"]["properties"] == {"text": {"type": "keyword"}}
    cluster.call("DELETE", name)
    cluster.close()


@pytest.mark.opensearch
def test_two_retrievers_can_load_one_version_at_once(opensearch_url: str, tmp_path: Path) -> None:
    harness = RetrieverHarness(tmp_path, "opensearch", opensearch_url)
    harness.write_corpus([(f"p{n:05d}", f"passage {n} of word{n % 13}", "s") for n in range(6_000)])
    other = RetrieverHarness.__new__(RetrieverHarness)
    other.__dict__ = {
        **harness.__dict__,
        "settings": harness.settings.model_copy(update={"scratch": tmp_path / "other"}),
    }
    with harness.retriever() as first, other.retriever() as second:
        for api in (first, second):
            api.put_corpus(*harness.key, folder="t/corpus", language="en")
        for api in (first, second):
            load = harness.load(api)
            assert (load.state, load.count) == ("ready", 6_000)
        assert len(first.search(*harness.key, "word3", 1000)) == len(range(3, 6_000, 13))
        first.delete_corpus(*harness.key)


@pytest.mark.opensearch
def test_old_version_stays_available_after_a_new_one(opensearch_url: str) -> None:
    cluster = connect(opensearch_url, retry_seconds=20)
    indexes, old = OpenSearchIndexes(cluster, shards=1), new_key()
    new = old._replace(version="v2")
    for key, text in ((old, "apple"), (new, "pear")):
        index = indexes.begin(key, "en")
        index.add([Passage("p", text, "s")])
        index.commit(1)
    assert [[h.id for h in indexes.open(key).search(["apple"], 3)[0]] for key in (old, new)] == [["p"], []]
    indexes.drop(new)
    assert indexes.open(old).count() == 1
    indexes.drop(old)
    with pytest.raises(NotFound):
        indexes.open(old)
    cluster.close()


def red_index(cluster: Any, harness: RetrieverHarness, state: str) -> str:
    """Create an index whose primary shard cannot be allocated, and return its path."""
    mark = {"schema": SCHEMA_VERSION, **harness.key._asdict(), "analysis": "standard", "state": state}
    body = index_body(mark, "standard", 1)
    body["settings"]["routing.allocation.require._name"] = "nowhere"
    name = f"tlm-{harness.key.slug}"
    body["aliases"] = {load_alias(name): {}}
    cluster.call("PUT", f"/{name}", body=body, params={"wait_for_active_shards": "0"})
    assert cluster.call("GET", f"/_cluster/health/{name}")["status"] == "red"
    return f"/{name}"


@pytest.mark.opensearch
def test_red_index_is_retried_then_fails_the_selection(opensearch_url: str, tmp_path: Path) -> None:
    harness = RetrieverHarness(tmp_path, "opensearch", opensearch_url)
    harness.settings = harness.settings.model_copy(update={"retry_seconds": 1})
    cluster = connect(opensearch_url, retry_seconds=20)
    with harness.retriever() as api:
        path = red_index(cluster, harness, "ready")
        began = time.monotonic()
        run = harness.select(api)
        assert (run.state, type(run.failure)) == ("failed", IndexUnavailable)
        assert "tlm_index_up 0.0" in api._http.get("/metrics").text
        assert time.monotonic() - began >= 1, "It retries for the configured time."
        cluster.call("DELETE", path)
        path = red_index(cluster, harness, "loading")
        api.put_corpus(*harness.key, folder="t/corpus", language="en")
        time.sleep(0.5)
        assert (load := api.corpus(*harness.key)).state == "loading" and not load.loaded
        cluster.call("PUT", f"{path}/_settings", body={"index": {"routing.allocation.require._name": None}})
        assert (load := harness.load(api)).state == "ready" and load.loaded == load.count == len(PASSAGES)
        assert harness.select(api).state == "ready"
        api.delete_corpus(*harness.key)
    cluster.close()
