"""A PassageIndex on OpenSearch: one index per corpus version. The mapping also has the state of the load."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from services.retriever.bulk import HASH_RANGE, BulkWriter, LoadCursor, id_hash
from services.retriever.cluster import TEMPORARY_STATUS, Cluster, reason_of
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound
from tlm_core.selection.index import K1, MAX_TERMS, B, Hit, best_terms, ranked
from tlm_core.selection.text_analysis import Analysis, terms

SCHEMA_VERSION = 1
_Json = dict[str, object]
_NO_HITS: _Json = {"match_none": {}}
# Without stored fields, the server decompresses no text, which saves a fifth of its work.
_SORT_VALUES_ONLY: _Json = {"_source": False, "stored_fields": "_none_", "track_total_hits": False}
_MSEARCH_SIZE = 128
_IN_FLIGHT = 3
_MGET_SIZE = 500
_IDS_SIZE = 10_000
_HITS_ONLY = (
    "responses.status,responses.error,responses.timed_out,responses._shards.failed,"
    "responses._shards.failures.reason,responses.hits.hits.sort"
)


def load_alias(name: str) -> str:
    """Return the OpenSearch alias through which a load writes to the index `name`."""
    return f"{name}-load"


def index_body(mark: Mapping[str, object], analysis: Analysis, shards: int) -> dict[str, dict[str, Any]]:
    """Return `{"settings": …, "mappings": …}` of a new index. Until `commit`, it has no replicas and no refreshes."""
    text: _Json = {"type": "text", "analyzer": "standard", "index_options": "freqs", "norms": True}
    properties: _Json = {
        "text": text,
        "source": {"type": "keyword", "ignore_above": 1024},
        "id": {"type": "keyword", "index": False, "doc_values": True},
    }
    source: _Json = {"includes": ["text", "source"]}
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
        "mappings": {"dynamic": "strict", "_meta": {"tlm": dict(mark)}, "_source": source, "properties": properties},
    }


class OpenSearchIndex:
    """The passages of one corpus version on a cluster.

    mark: schema, corpus version, analysis and state, stored as `_meta.tlm` in the mapping. identity: the UUID of the
    index. score_factor: the scores of the server divided by the BM25 scores that `tlm_core.selection.index` defines.
    """

    def __init__(self, cluster: Cluster, name: str, mark: Mapping[str, Any], shards: int, identity: str = "") -> None:
        self.name = name
        self.identity = identity
        self.mark = dict(mark)
        self.analysis: Analysis = mark["analysis"]
        self._cluster = cluster
        self._field = "terms" if self.analysis == "bigrams" else "text"
        # Scores of several shards are comparable only if each shard uses the term frequencies of all shards.
        self._shards = shards
        self._search_type = "dfs_query_then_fetch" if shards > 1 else "query_then_fetch"
        self._writer: BulkWriter | None = None
        self._start = LoadCursor()
        # BM25 of OpenSearch 2 has the constant factor that Lucene removed later.
        self.score_factor = K1 + 1 if cluster.version() < 3 else 1.0

    @property
    def ready(self) -> bool:
        """Whether the index is complete."""
        return self.mark.get("state") == "ready"

    # --- loading --------------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> LoadCursor:
        """The progress of the load."""
        return self._writer.cursor if self._writer else self._start

    def resume(self, cursor: LoadCursor) -> None:
        """Continue the interrupted load of this index at `cursor`. Call this method before `add`."""
        self._start = cursor

    def add(self, batch: Sequence[Passage]) -> None:
        if self.ready:
            raise Conflict(
                "The index is complete and accepts no more passages. Load them as another version of the corpus."
            )
        if self._writer is None:
            self._writer = BulkWriter(self._cluster, load_alias(self.name), self._document, self._start)
        self._writer.write(batch)

    def flush(self) -> None:
        """Wait until all added passages are written."""
        if self._writer is not None:
            self._writer.flush()

    def _document(self, passage: Passage) -> dict[str, str]:
        document = passage._asdict()
        if self._field == "terms":
            document["terms"] = " ".join(terms(passage.text, self.analysis))
        return document

    def commit(self, expected: int | None = None) -> None:
        """Check number and ids of the passages, and make the index searchable. A failed call can be repeated."""
        self.flush()
        self._read("POST", "_refresh")
        count, refused = self.count(), len(self.cursor.refused)
        if expected is not None and count + refused != expected:
            raise IndexMismatch(
                f"The index contains {count} passages, and {refused} were refused, but the corpus has {expected}. "
                "Check that each passage has its own id."
            )
        if self.cursor.position == expected:  # Otherwise passages were added twice, also to the checksum.
            self._check_ids()
        self._read("POST", "_flush")
        settings = {"auto_expand_replicas": "0-1", "refresh_interval": None, "blocks": {"write": True}}
        self._read("PUT", "_settings", body={"index": settings})
        self.mark = {**self.mark, "state": "ready", "count": count}
        self._read("PUT", "_mapping", body={"_meta": {"tlm": self.mark}})

    def _check_ids(self) -> None:
        checksum = sum(id_hash(name) for batch in self.ids() for name in batch) % HASH_RANGE
        if checksum != self.cursor.checksum:
            raise IndexMismatch(
                f"The ids in index {self.name} differ from the loaded ids. Delete the index. Load the corpus again."
            )

    # --- reading --------------------------------------------------------------------------------------------------

    def _read(self, method: str, end: str, **options: Any) -> Any:
        """Send a request to the index and return the response.

        Raises IndexUnavailable if the index was deleted, even if a new load has created an index of the same name. The
        new index is incomplete, and the response may come from it.
        """
        uuid = {"filter_path": "*.settings.index.uuid"}
        try:
            response = self._cluster.call(method, f"/{self.name}/{end}", **options)
            current = self._cluster.call("GET", f"/{self.name}", params=uuid)[self.name]["settings"]["index"]["uuid"]
        except NotFound as error:
            raise _deleted(error.message) from error
        if current != self.identity:
            raise _deleted("a new load has created it again")
        return response

    def count(self) -> int:
        response = self._read("GET", "_count")
        if response["_shards"]["failed"]:
            raise IndexUnavailable(
                f"A shard of the OpenSearch index {self.name} does not answer. Check the health of OpenSearch."
            )
        return int(response["count"])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        parts = [queries[start : start + _MSEARCH_SIZE] for start in range(0, len(queries), _MSEARCH_SIZE)]
        if len(parts) <= 1:
            return self._search(queries, k) if parts else []
        # The cluster works on the next requests while this process sorts the hits of one response.
        with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="search") as pool:
            return list(chain.from_iterable(pool.map(lambda part: self._search(part, k), parts)))

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return the best `k` hits of each query. Send one request, and repeat queries with incomplete responses."""
        backoff = self._cluster.backoff()
        pending = {number: body for number, query in enumerate(queries) if (body := self._body(query))}
        results: list[list[Hit]] = [[] for _ in queries]
        while pending:
            # Sorting by id within a score also resolves ties at rank k.
            options = {"size": k, "sort": [{"_score": "desc"}, {"id": "asc"}], **_SORT_VALUES_ONLY}
            lines = (f"{{}}\n{json.dumps({'query': query, **options})}\n" for query in pending.values())
            params = {"search_type": self._search_type, "filter_path": _HITS_ONLY}
            answer = self._read("POST", "_msearch", body="".join(lines).encode(), params=params)
            again: dict[int, _Json] = {}
            failure = None
            for (number, query), response in zip(pending.items(), answer["responses"], strict=True):
                if _too_many_clauses(response) and "match" in query:
                    again[number] = self._by_terms(terms(queries[number], self.analysis))
                elif reason := _incomplete(response):
                    failure = IndexUnavailable(f"Incomplete search response: {reason}. Check the OpenSearch cluster.")
                    again[number] = query
                else:
                    hits = (hit["sort"] for hit in response.get("hits", {}).get("hits", []))
                    results[number] = ranked([Hit(name, score / self.score_factor) for score, name in hits], k)
            pending = again
            if failure:
                backoff.wait(failure)
        return results

    def _body(self, text: str) -> _Json | None:
        """Return the OpenSearch query for `text`, or None if `text` has no terms. Query syntax has no effect."""
        words = terms(text, self.analysis)
        if len(words) > MAX_TERMS:
            return self._by_terms(words)
        query = " ".join(words) if self._field == "terms" else text
        return {"match": {self._field: {"query": query}}} if words else None

    def _by_terms(self, words: Sequence[str]) -> _Json:
        """Return the query for a long text, with a clause for each term, or only for the MAX_TERMS best terms."""
        counts: Mapping[str, int] = Counter(words)
        if len(counts) > MAX_TERMS:
            counts = best_terms(counts, self._passages_with(counts).__getitem__, self.count())
        clauses = [{"term": {self._field: {"value": term, "boost": count}}} for term, count in counts.items()]
        return {"bool": {"should": clauses}} if clauses else _NO_HITS

    def _passages_with(self, words: Collection[str]) -> Counter[str]:
        """Return term → number of passages with the term. Adds the counts of all shards."""
        body = {
            "doc": {self._field: " ".join(words)},
            "fields": [self._field],
            "term_statistics": True,
            "positions": False,
            "offsets": False,
            "field_statistics": False,
        }
        passages: Counter[str] = Counter()
        for shard in range(self._shards):
            params = {"preference": f"_shards:{shard}"}
            response = self._read("POST", "_termvectors", body=body, params=params)
            statistics = response["term_vectors"].get(self._field, {"terms": {}})["terms"]
            passages.update({term: entry.get("doc_freq", 0) for term, entry in statistics.items()})
        return passages

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        wanted = list(ids)
        passages: dict[str, Passage] = {}
        for start in range(0, len(wanted), _MGET_SIZE):
            passages |= {passage.id: passage for passage in self._fetch(wanted[start : start + _MGET_SIZE])}
        return passages

    def _fetch(self, ids: list[str]) -> list[Passage]:
        backoff = self._cluster.backoff()
        params = {"filter_path": "docs._id,docs.found,docs._source,docs.error", "realtime": "false"}
        while True:
            response = self._read("POST", "_mget", body={"ids": ids}, params=params)
            error = next((document["error"] for document in response["docs"] if "error" in document), None)
            if error is None:
                return [_passage(document) for document in response["docs"]]
            backoff.wait(IndexUnavailable(f"Cannot read passages: {reason_of(error)}. Check the OpenSearch cluster."))

    def ids(self) -> Iterator[list[str]]:
        last: str | None = None
        while True:
            body: _Json = {"size": _IDS_SIZE, "sort": [{"id": "asc"}], **_SORT_VALUES_ONLY}
            if last is not None:
                body["search_after"] = [last]
            params = {"allow_partial_search_results": "false", "filter_path": "hits.hits.sort"}
            response = self._read("POST", "_search", body=body, params=params)
            names = [hit["sort"][0] for hit in response.get("hits", {}).get("hits", [])]
            if not names:
                return
            yield names
            last = names[-1]

    def close(self) -> None:
        """Stop the writer. The cluster object owns the connections and closes them."""
        if self._writer is not None:
            self._writer.close()


def _passage(document: Mapping[str, Any]) -> Passage:
    if not document["found"]:
        raise NotFound(f"Passage '{document['_id']}' is not in the index. Load the corpus again.")
    source = document["_source"]
    return Passage(document["_id"], source["text"], source["source"])


def _too_many_clauses(response: Mapping[str, object]) -> bool:
    reason = reason_of(response.get("error"))
    return "too_many" in reason and "clauses" in reason


def _incomplete(response: Mapping[str, Any]) -> str | None:
    """Return why the response to a query is incomplete, or None if it is complete.

    Raises IndexMismatch if a retry cannot help, and IndexUnavailable if the index was deleted.
    """
    if "error" in response:
        reason = reason_of(response["error"])
        if _too_many_clauses(response):
            raise IndexMismatch(
                f"The clause limit of OpenSearch is too low ({reason}). "
                f"Set indices.query.bool.max_clause_count to {MAX_TERMS} or more."
            )
        if response["status"] == 404:
            raise _deleted(reason)
        if response["status"] not in TEMPORARY_STATUS and response["status"] < 500:
            raise IndexMismatch(f"OpenSearch rejected a search ({reason}). Load the corpus again.")
        return reason
    if response.get("timed_out"):
        return "a shard timed out"
    if response["_shards"]["failed"]:
        failures = response["_shards"].get("failures", [])
        return "; ".join(reason_of(failure["reason"]) for failure in failures) or "a shard failed"
    return None


def _deleted(reason: str) -> IndexUnavailable:
    """Return the error for a deleted index. It is retryable: `IndexLoads.ready` then builds the index again."""
    return IndexUnavailable(f"The index was deleted ({reason}). Try again. The service then loads the corpus again.")
