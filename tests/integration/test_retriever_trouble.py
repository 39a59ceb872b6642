"""OpenSearch in trouble: a selection waits, or fails and says what to do; it is never silently smaller."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.retriever.cluster import connect
from services.retriever.indexes import OpenSearchIndexes
from services.retriever.opensearch_index import SCHEMA_VERSION, index_body, load_alias
from tests.contract.retriever_place import PASSAGES, Place
from tests.contract.selection_indexes import new_key
from tests.integration.played_opensearch import PlayedOpenSearch, Reply, Trouble
from tests.redis_server import free_port
from tests.support import skip_or_fail
from tlm_core.corpus.passages import Passage
from tlm_core.errors import IndexMismatch, IndexUnavailable, NotFound, StorageFull, TLMError

HELD = [Passage(*row) for row in PASSAGES]
WHOLE = 10  # passages that the three queries of the task find at top 5


class Retriever:
    """A retriever over a played cluster."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder, "opensearch", "http://127.0.0.1:1")
        self.played = PlayedOpenSearch(self.place.key, HELD)

    def selection(self, *, patience: float = 20, **settings: Any) -> Any:
        """What becomes of a selection, started now and asked again as the coordinator asks."""
        over = {"opensearch_url": self.played.url, "patience_seconds": patience, **settings}
        self.place.settings = self.place.settings.model_copy(update=over)
        with self.place.retriever() as api:
            return self.place.select(api)

    def passages_of(self, run: Any) -> int:
        assert (run.state, run.error) == ("ready", None)
        return int(self.place.store.verify(run.ref).meta["passages"])


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    return Retriever(tmp_path)


@pytest.fixture
def served(retriever: Retriever) -> Iterator[Retriever]:
    with retriever.played.serving():
        yield retriever


def times(number: int, end: str, reply: Reply | Callable[[Any], Reply]) -> Trouble:
    """The first `number` requests that end in `end` are answered so."""
    left = [number]

    def trouble(asked: str, answer: Any) -> Reply | None:
        if asked != end or not left[0]:
            return None
        left[0] -= 1
        return reply(answer) if callable(reply) else reply

    return trouble


def refused(status: int, kind: str, reason: str = "because") -> Reply:
    return Reply(status, {"error": {"type": kind, "reason": reason, "root_cause": []}, "status": status})


def one_shard_fails(answer: Any) -> Reply:
    """All hits but one, and in a corner of the answer that a shard has failed."""
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


PASSES: dict[str, Reply | Callable[[Any], Reply]] = {
    "429": refused(429, "circuit_breaking_exception"),
    "503": refused(503, "cluster_block_exception", "no cluster manager"),
    "cut": Reply(0),
    "one shard failing": one_shard_fails,
    "red index": red,
    "timed out": timed_out,
    "proxy's page": Reply(502, "<html>Bad gateway</html>"),
}


def test_without_trouble_the_selection_is_whole(served: Retriever) -> None:
    assert served.passages_of(served.selection()) == WHOLE


@pytest.mark.parametrize("trouble", PASSES)
def test_what_passes_is_waited_out_and_the_selection_is_whole(served: Retriever, trouble: str) -> None:
    served.played.trouble = times(3, "_msearch", PASSES[trouble])
    assert served.passages_of(served.selection()) == WHOLE
    assert served.played.asked.count("_msearch") == 4


@pytest.mark.parametrize("trouble", PASSES)
def test_what_does_not_pass_fails_the_selection_which_may_be_asked_for_again(served: Retriever, trouble: str) -> None:
    served.played.trouble = times(10**6, "_msearch", PASSES[trouble])
    run = served.selection(patience=0.5)
    assert (run.state, run.ref) == ("failed", None)
    assert isinstance(run.failure, IndexUnavailable) and run.failure.retryable
    served.played.trouble = times(0, "", Reply(0))
    assert served.passages_of(served.selection()) == WHOLE


def test_passages_that_cannot_be_read_for_a_while_are_not_left_out(served: Retriever) -> None:
    def broken(answer: Any) -> Reply:
        docs = [{"_id": d["_id"], "error": {"type": "shard", "reason": "away"}} for d in answer["docs"]]
        return Reply(200, {"docs": docs[:1] + answer["docs"][1:]})

    served.played.trouble = times(2, "_mget", broken)
    assert served.passages_of(served.selection()) == WHOLE


def test_a_cluster_that_is_down_at_the_start_is_waited_for(retriever: Retriever) -> None:
    port, come = free_port(), threading.Event()

    def later() -> None:
        time.sleep(1.0)
        with retriever.played.serving(port=port):
            come.wait(30)

    thread = threading.Thread(target=later)
    thread.start()
    try:
        retriever.played.url = f"http://127.0.0.1:{port}"
        assert retriever.passages_of(retriever.selection()) == WHOLE
    finally:
        come.set()
        thread.join()


def test_a_cluster_that_stays_away_is_told_with_its_address_setting(retriever: Retriever) -> None:
    retriever.played.url = f"http://127.0.0.1:{free_port()}"
    run = retriever.selection(patience=0.5)
    assert isinstance(run.failure, IndexUnavailable) and "TLM_RETRIEVER_OPENSEARCH_URL" in run.failure.message


@pytest.mark.parametrize("number", ["8.19.2", "9.1.0"])
def test_an_elasticsearch_is_told_apart_and_never_used(served: Retriever, number: str) -> None:
    served.played.banner = {"version": {"number": number, "build_flavor": "default"}, "tagline": "You Know, for Search"}
    run = served.selection()
    assert isinstance(run.failure, IndexMismatch)
    assert f"elasticsearch {number}" in run.failure.message and "TLM_RETRIEVER_OPENSEARCH_URL" in run.failure.message
    assert "_msearch" not in served.played.asked


def test_a_page_instead_of_a_cluster_is_told(served: Retriever) -> None:
    served.played.trouble = times(10**6, "", Reply(200, "<html>Welcome</html>"))
    run = served.selection(patience=0.5)
    assert isinstance(run.failure, IndexMismatch) and "TLM_RETRIEVER_OPENSEARCH_URL" in run.failure.message


@pytest.mark.parametrize("given", [None, "wrong", "right"])
def test_a_wrong_password_is_told_at_once_and_the_right_one_works(served: Retriever, given: str | None) -> None:
    from pydantic import SecretStr

    served.played.password = "right"
    user = {"opensearch_user": "tlm", "opensearch_password": SecretStr(given)} if given else {}
    began = time.monotonic()
    run = served.selection(**user)
    if given == "right":
        assert served.passages_of(run) == WHOLE
        return
    assert isinstance(run.failure, IndexUnavailable) and "TLM_RETRIEVER_OPENSEARCH_USER" in run.failure.message
    assert "wrong" not in run.failure.message
    assert time.monotonic() - began < 15, "no waiting makes it right"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority of our own (ca.pem) and a server's certificate and key by it (server.pem)."""
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
        skip_or_fail("no openssl to make a certificate with")
    (folder / "server.pem").write_text((folder / "s.pem").read_text() + (folder / "s.key").read_text())
    return folder


def test_a_cluster_with_a_certificate_of_its_own_authority_is_trusted_through_the_setting(
    retriever: Retriever, authority: Path
) -> None:
    with retriever.played.serving(certificate=authority / "server.pem"):
        began = time.monotonic()
        run = retriever.selection()
        assert isinstance(run.failure, IndexUnavailable) and "TLM_RETRIEVER_OPENSEARCH_CA" in run.failure.message
        assert time.monotonic() - began < 15, "no waiting makes it trusted"
        assert retriever.passages_of(retriever.selection(opensearch_ca=authority / "ca.pem")) == WHOLE


def test_an_authority_file_that_is_not_there_is_told(retriever: Retriever, authority: Path) -> None:
    with (
        retriever.played.serving(certificate=authority / "server.pem"),
        pytest.raises(TLMError, match=r"TLM_RETRIEVER_OPENSEARCH_CA.*nowhere"),
    ):
        retriever.selection(opensearch_ca=authority / "nowhere.pem")


# --- a real cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.opensearch
def test_a_disk_at_its_watermark_ends_the_load_which_goes_on_when_there_is_room(
    opensearch_url: str, tmp_path: Path
) -> None:
    place = Place(tmp_path, "opensearch", opensearch_url)
    cluster = connect(opensearch_url, patience=20)
    indexes = OpenSearchIndexes(cluster, shards=1)
    indexes.begin(place.key, "en").close()
    settings = f"/tlm-{place.key.slug}/_settings"
    cluster.call("PUT", settings, body={"index": {"blocks": {"read_only_allow_delete": True}}})
    with place.retriever() as api:
        load = place.load(api)
        assert isinstance(load.failure, StorageFull) and "more room" in load.failure.message
        cluster.call("PUT", settings, body={"index": {"blocks": {"read_only_allow_delete": None}}})
        assert place.load(api).state == "ready"
        assert place.select(api).state == "ready"
        api.delete_corpus(*place.key)
    cluster.close()


@pytest.mark.opensearch
def test_an_index_of_someone_else_under_our_name_is_neither_used_nor_harmed(
    opensearch_url: str, tmp_path: Path
) -> None:
    place = Place(tmp_path, "opensearch", opensearch_url)
    cluster = connect(opensearch_url, patience=20)
    name = f"/tlm-{place.key.slug}"
    cluster.call("PUT", name, body={"mappings": {"properties": {"text": {"type": "keyword"}}}})
    with place.retriever() as api:
        load = place.load(api)
        assert isinstance(load.failure, IndexMismatch) and "delete it" in load.failure.message
        assert isinstance(place.select(api).failure, IndexMismatch)
    assert cluster.call("GET", name)[name[1:]]["mappings"]["properties"] == {"text": {"type": "keyword"}}
    cluster.call("DELETE", name)
    cluster.close()


@pytest.mark.opensearch
def test_two_retrievers_that_load_one_version_at_once_both_come_to_its_end(opensearch_url: str, tmp_path: Path) -> None:
    place = Place(tmp_path, "opensearch", opensearch_url)
    place.write_corpus([(f"p{n:05d}", f"passage {n} of word{n % 13}", "s") for n in range(20_000)])
    other = Place.__new__(Place)
    other.__dict__ = {**place.__dict__, "settings": place.settings.model_copy(update={"scratch": tmp_path / "other"})}
    with place.retriever() as one, other.retriever() as two:
        for api in (one, two):
            api.put_corpus(*place.key, folder="t/corpus", language="en")
        for api in (one, two):
            load = place.load(api)
            assert (load.state, load.count) == ("ready", 20_000)
        assert len(one.search(*place.key, "word3", 1000)) == 1000
        one.delete_corpus(*place.key)


@pytest.mark.opensearch
def test_an_old_version_stays_selectable_when_a_new_one_is_complete(opensearch_url: str) -> None:
    from services.retriever.opensearch_index import current_alias

    cluster = connect(opensearch_url, patience=20)
    indexes, old = OpenSearchIndexes(cluster, shards=1), new_key()
    new, alias = old._replace(version="v2"), current_alias(old.tenant, old.name)
    for key, text in ((old, "apple"), (new, "pear")):
        index = indexes.begin(key, "en")
        index.add([Passage("p", text, "s")])
        assert key is old or f"tlm-{new.slug}" not in cluster.call("GET", f"/_alias/{alias}"), "not complete yet"
        index.commit(1)
    assert list(cluster.call("GET", f"/_alias/{alias}")) == [f"tlm-{new.slug}"]
    assert [[h.id for h in indexes.open(key).search(["apple"], 3)[0]] for key in (old, new)] == [["p"], []]
    indexes.drop(new)
    assert list(cluster.call("GET", f"/_alias/{alias}")) == [f"tlm-{old.slug}"], "the version before is current again"
    assert indexes.open(old).count() == 1
    indexes.drop(old)
    with pytest.raises(NotFound):
        cluster.call("GET", f"/_alias/{alias}")
    cluster.close()


def red_index(cluster: Any, place: Place, state: str) -> str:
    """The path of an index of ours whose primary shard has nowhere to go."""
    meta = {"schema": SCHEMA_VERSION, **place.key._asdict(), "analysis": "standard", "state": state}
    body = index_body(meta, "standard", 1)
    body["settings"]["routing.allocation.require._name"] = "nowhere"
    name = f"tlm-{place.key.slug}"
    body["aliases"] = {load_alias(name): {}}
    cluster.call("PUT", f"/{name}", body=body, params={"wait_for_active_shards": "0"})
    assert cluster.call("GET", f"/_cluster/health/{name}")["status"] == "red"
    return f"/{name}"


@pytest.mark.opensearch
def test_a_red_index_is_waited_for_and_then_told_and_never_a_smaller_selection(
    opensearch_url: str, tmp_path: Path
) -> None:
    place = Place(tmp_path, "opensearch", opensearch_url)
    place.settings = place.settings.model_copy(update={"patience_seconds": 2})
    cluster = connect(opensearch_url, patience=20)
    with place.retriever() as api:
        path = red_index(cluster, place, "ready")
        began = time.monotonic()
        run = place.select(api)
        assert (run.state, type(run.failure)) == ("failed", IndexUnavailable)
        assert time.monotonic() - began >= 2, "it waited as long as it may"
        cluster.call("DELETE", path)
        path = red_index(cluster, place, "loading")
        api.put_corpus(*place.key, folder="t/corpus", language="en")
        time.sleep(1)
        assert (load := api.corpus(*place.key)).state == "loading" and not load.loaded
        cluster.call("PUT", f"{path}/_settings", body={"index": {"routing.allocation.require._name": None}})
        assert (load := place.load(api)).state == "ready" and load.loaded == load.count == len(PASSAGES)
        assert place.select(api).state == "ready"
        api.delete_corpus(*place.key)
    cluster.close()
