"""A PassageIndex on OpenSearch: one index for each corpus version, with our mapping and our mark in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from services.retriever.bulk import CHECKSUM_RANGE, BulkWriter, Refused, Taken, id_key
from services.retriever.cluster import PASSING, Cluster, reason_of
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound
from tlm_core.selection.index import K1, MAX_TERMS, B, Hit, best_terms, ranked
from tlm_core.selection.text_analysis import Analysis, terms

SCHEMA_VERSION = 1
_NOTHING: dict[str, Any] = {"match_none": {}}
_VALUES_ONLY: dict[str, Any] = {"_source": False, "stored_fields": "_none_", "track_total_hits": False}
_MSEARCH = 128
_IN_FLIGHT = 3
_MGET = 500
_IDS = 10_000
_HITS_ONLY = (
    "responses.status,responses.error,responses.timed_out,responses._shards.failed,"
    "responses._shards.failures.reason,responses.hits.hits.sort"
)


def load_alias(name: str) -> str:
    """The alias through which index `name` is written."""
    return f"{name}-load"


def current_alias(tenant: str, corpus: str) -> str:
    """The alias that names the version of a corpus which was completed last."""
    return f"tlm-current-{slug(corpus, (tenant, corpus))}"


def slug(readable: str, key: tuple[str, ...]) -> str:
    """A name for files and indexes: readable, in lower case, and different for every key."""
    plain = re.sub("[^a-z0-9]+", "-", readable.lower()).strip("-")[:60]
    return f"{plain}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"


def index_body(meta: Mapping[str, Any], analysis: Analysis, shards: int) -> dict[str, Any]:
    """Settings and mapping of an index that is being loaded: no replicas and no refreshes until it is whole."""
    text: dict[str, Any] = {"type": "text", "analyzer": "standard", "index_options": "freqs", "norms": True}
    properties: dict[str, Any] = {
        "text": text,
        "source": {"type": "keyword", "ignore_above": 1024},
        "id": {"type": "keyword", "index": False, "doc_values": True},
    }
    source: dict[str, Any] = {"includes": ["text", "source"]}
    if analysis == "bigrams":
        properties["terms"] = {**text, "analyzer": "whitespace"}
        properties["text"] = {"type": "text", "index": False}
    return {
        "settings": {
            "number_of_shards": shards,
            "number_of_replicas": 0,
            "refresh_interval": "-1",
            "similarity": {"default": {"type": "BM25", "k1": K1, "b": B}},
        },
        "mappings": {"dynamic": "strict", "_meta": {"tlm": dict(meta)}, "_source": source, "properties": properties},
    }


class OpenSearchIndex:
    """The passages of one corpus version on a cluster.

    meta: our mark in the mapping. identity: differs for every index ever made, of the same name as well. scale: what
    the server's scores are divided by to be on the common scale.
    """

    def __init__(self, cluster: Cluster, name: str, meta: Mapping[str, Any], shards: int, identity: str = "") -> None:
        self.name = name
        self.identity = identity
        self.meta = dict(meta)
        self.analysis: Analysis = meta["analysis"]
        self._cluster = cluster
        self._field = "terms" if self.analysis == "bigrams" else "text"
        # Scores of several shards are comparable only with the frequencies of all of them.
        self._shards = shards
        self._search_type = "dfs_query_then_fetch" if shards > 1 else "query_then_fetch"
        self._writer: BulkWriter | None = None
        self._from = Taken()
        # The BM25 of OpenSearch 2 still has the constant factor that Lucene dropped.
        self.scale = K1 + 1 if cluster.version() < 3 else 1.0

    @property
    def ready(self) -> bool:
        """Whether the index is whole and may be searched."""
        return self.meta.get("state") == "ready"

    # --- loading --------------------------------------------------------------------------------------------------

    @property
    def taken(self) -> int:
        """Passages, from the first one of the corpus on, that are in the index for good or refused."""
        return self._writer.taken if self._writer else self._from.taken

    @property
    def refused(self) -> Sequence[Refused]:
        """Those that never will be in it."""
        return self._writer.refused if self._writer else self._from.refused

    @property
    def checksum(self) -> int:
        """Sum of `id_key` over those that are in it."""
        return self._writer.checksum if self._writer else self._from.checksum

    def go_on(self, at: Taken) -> None:
        """Begin to write where an earlier load of this very index (see `identity`) came to; before the first `add`."""
        self._from = at

    def add(self, batch: Sequence[Passage]) -> None:
        if self.ready:
            raise Conflict("the index is committed; load another version of the corpus instead")
        if self._writer is None:
            self._writer = BulkWriter(self._cluster, load_alias(self.name), self._from)
        for passage in batch:
            self._writer.write(passage, self._lines(passage))

    def flush(self) -> None:
        """Wait until all that was added is taken."""
        if self._writer is not None:
            self._writer.flush()

    def _lines(self, passage: Passage) -> bytes:
        # `create` makes a repeated passage a conflict, which is no fault here: nothing is ever written twice.
        action = json.dumps({"create": {"_id": passage.id}})
        document = {"id": passage.id, "text": passage.text, "source": passage.source}
        if self._field == "terms":
            document["terms"] = " ".join(terms(passage.text, self.analysis))
        return f"{action}\n{json.dumps(document, ensure_ascii=False)}\n".encode()

    def commit(self, expected: int | None = None) -> None:
        """As the port says; count and checksum are held against what was sent. May be done again if it was cut off."""
        self.flush()
        self._cluster.call("POST", f"/{self.name}/_refresh")
        count = self.count()
        if expected is not None and count + len(self.refused) != expected:
            raise IndexMismatch(
                f"{count} passages are in the index and {len(self.refused)} were refused, which is not the corpus's "
                f"{expected}; are its ids unique?"
            )
        if self.taken == expected:  # else some were added twice, which is no fault, but is in the sum twice
            self._check_ids()
        self._cluster.call("POST", f"/{self.name}/_flush")
        settings = {"auto_expand_replicas": "0-1", "refresh_interval": None, "blocks": {"write": True}}
        self._cluster.call("PUT", f"/{self.name}/_settings", body={"index": settings})
        self._move_alias()
        self.meta = {**self.meta, "state": "ready", "count": count}
        self._cluster.call("PUT", f"/{self.name}/_mapping", body={"_meta": {"tlm": self.meta}})

    def _check_ids(self) -> None:
        found = sum(id_key(name) for batch in self.ids() for name in batch) % CHECKSUM_RANGE
        if found != self.checksum:
            raise IndexMismatch(f"{self.name} does not hold the ids that were sent; delete it, load the corpus again")

    def _move_alias(self) -> None:
        """The corpus's alias names this version from now on, in one step; nothing is written here any more."""
        current = current_alias(self.meta["tenant"], self.meta["name"])
        actions: list[dict[str, Any]] = [
            {"remove": {"index": "tlm-*", "alias": current, "must_exist": False}},
            {"add": {"index": self.name, "alias": current}},
        ]
        self._cluster.call("POST", "/_aliases", body={"actions": actions})

    # --- reading --------------------------------------------------------------------------------------------------

    def count(self) -> int:
        answer = self._cluster.call("GET", f"/{self.name}/_count")
        if answer["_shards"]["failed"]:
            raise IndexUnavailable(f"a shard of {self.name} does not answer; look at the cluster's health")
        return int(answer["count"])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        parts = [queries[start : start + _MSEARCH] for start in range(0, len(queries), _MSEARCH)]
        if len(parts) <= 1:
            return self._search(queries, k) if parts else []
        # While one answer is read and its hits are put in order, the cluster works on the next ones.
        with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="search") as pool:
            return list(chain.from_iterable(pool.map(lambda part: self._search(part, k), parts)))

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """One _msearch; queries that a busy or broken shard could not answer in full are asked again."""
        patience = self._cluster.patience()
        pending = {number: body for number, query in enumerate(queries) if (body := self._body(query))}
        results: list[list[Hit]] = [[] for _ in queries]
        while pending:
            lines = (f"{{}}\n{json.dumps(self._request(query, k))}\n" for query in pending.values())
            params = {"search_type": self._search_type, "filter_path": _HITS_ONLY}
            answer = self._cluster.call("POST", f"/{self.name}/_msearch", body="".join(lines).encode(), params=params)
            again: dict[int, Any] = {}
            fault = None
            for (number, query), response in zip(pending.items(), answer["responses"], strict=True):
                if _too_many_clauses(response) and "match" in query:
                    again[number] = self._by_terms(terms(queries[number], self.analysis))
                elif problem := _problem(response):
                    fault = IndexUnavailable(f"a search was not answered in full: {problem}; look at the cluster")
                    again[number] = query
                else:
                    found = (hit["sort"] for hit in response.get("hits", {}).get("hits", []))
                    results[number] = ranked([Hit(name, score / self.scale) for score, name in found], k)
            pending = again
            if fault:
                patience.wait(fault)
        return results

    def _value(self, text: str) -> str:
        """What the query's field is matched with."""
        return " ".join(terms(text, self.analysis)) if self._field == "terms" else text

    def _body(self, text: str) -> dict[str, Any] | None:
        """The query for `text`, or None if it has no terms. The text is only ever a value, never query syntax."""
        found = terms(text, self.analysis)
        if len(found) > MAX_TERMS:
            return self._by_terms(found)
        return {"match": {self._field: {"query": self._value(text)}}} if found else None

    def _by_terms(self, found: Sequence[str]) -> dict[str, Any]:
        """The query for a long text: a clause for each distinct term, of too many only the best."""
        counts: Mapping[str, int] = Counter(found)
        if len(counts) > MAX_TERMS:
            holding = self._passages_with(counts)
            counts = best_terms(counts, holding.__getitem__, self.count())
        clauses = [{"term": {self._field: {"value": term, "boost": count}}} for term, count in counts.items()]
        return {"bool": {"should": clauses}} if clauses else _NOTHING

    def _passages_with(self, wanted: Collection[str]) -> Counter[str]:
        """How many passages hold each of the terms. A shard tells of its own only, so all of them are asked."""
        body = {"doc": {self._field: " ".join(wanted)}, "fields": [self._field], "term_statistics": True,
                "positions": False, "offsets": False, "field_statistics": False}  # fmt: skip
        holding: Counter[str] = Counter()
        for shard in range(self._shards):
            params = {"preference": f"_shards:{shard}"}
            answer = self._cluster.call("POST", f"/{self.name}/_termvectors", body=body, params=params)
            found = answer["term_vectors"].get(self._field, {"terms": {}})["terms"]
            holding.update({term: entry.get("doc_freq", 0) for term, entry in found.items()})
        return holding

    @staticmethod
    def _request(query: Mapping[str, Any], k: int) -> dict[str, Any]:
        # Sorting by id within a score decides ties at the cut as well. The values sorted by are all that is needed of a
        # hit; without stored fields no block of texts is decompressed for its id, a fifth of the server's work.
        return {"query": query, "size": k, "sort": [{"_score": "desc"}, {"id": "asc"}], **_VALUES_ONLY}

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        wanted = list(ids)
        found: dict[str, Passage] = {}
        for start in range(0, len(wanted), _MGET):
            found.update(self._fetch(wanted[start : start + _MGET]))
        return found

    def _fetch(self, ids: list[str]) -> dict[str, Passage]:
        patience = self._cluster.patience()
        params = {"filter_path": "docs._id,docs.found,docs._source,docs.error", "realtime": "false"}
        while True:
            answer = self._cluster.call("POST", f"/{self.name}/_mget", body={"ids": ids}, params=params)
            broken = next((doc["error"] for doc in answer["docs"] if "error" in doc), None)
            if broken is None:
                break
            patience.wait(IndexUnavailable(f"passages cannot be read: {reason_of(broken)}; look at the cluster"))
        for doc in answer["docs"]:
            if not doc["found"]:
                raise NotFound(f"passage '{doc['_id']}' is not in the index")
        return {
            doc["_id"]: Passage(doc["_id"], doc["_source"]["text"], doc["_source"]["source"]) for doc in answer["docs"]
        }

    def ids(self) -> Iterator[list[str]]:
        last: str | None = None
        while True:
            body: dict[str, Any] = {"size": _IDS, "sort": [{"id": "asc"}], **_VALUES_ONLY}
            if last is not None:
                body["search_after"] = [last]
            params = {"allow_partial_search_results": "false", "filter_path": "hits.hits.sort"}
            answer = self._cluster.call("POST", f"/{self.name}/_search", body=body, params=params)
            names = [hit["sort"][0] for hit in answer.get("hits", {}).get("hits", [])]
            if not names:
                return
            yield names
            last = names[-1]

    def close(self) -> None:
        """End what is being written. The cluster's connections belong to whoever made it."""
        if self._writer is not None:
            self._writer.close()


def _too_many_clauses(response: Mapping[str, Any]) -> bool:
    reason = reason_of(response.get("error"))
    return "too_many" in reason and "clauses" in reason


def _problem(response: Mapping[str, Any]) -> str | None:
    """Why an answer is not the whole answer, if it may be later. Raises for what will not pass."""
    if "error" in response:
        reason = reason_of(response["error"])
        if _too_many_clauses(response):
            raise IndexMismatch(f"the cluster takes too few clauses ({reason}); "
                                f"set indices.query.bool.max_clause_count to {MAX_TERMS} or more")  # fmt: skip
        if response["status"] == 404:
            raise NotFound(f"the index is gone: {reason}; load the corpus again")
        if response["status"] not in PASSING and response["status"] < 500:
            raise IndexMismatch(f"OpenSearch does not understand a search of ours: {reason}")
        return reason
    if response.get("timed_out"):
        return "a shard took too long"
    if response["_shards"]["failed"]:
        return (
            "; ".join(reason_of(failure["reason"]) for failure in response["_shards"].get("failures", [])) or "a shard"
        )
    return None
