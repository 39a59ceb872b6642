"""The catalog in Redis of the uploads of tenants: datasets, corpora with their versions, and loads of corpora.

Records are small JSON values, which name files in the storage by ManifestRef. Every write is one atomic step.

Keys (prefix `tlm`, tenant in braces):
    tlm:{T}:dataset:ID          the record           tlm:{T}:datasets             ids, sorted by id, and so by time
    tlm:{T}:dataset-name:NAME   dataset ids, scored by version   tlm:{T}:dataset-versions   NAME → last version number
    tlm:{T}:corpus:NAME         version → record     tlm:{T}:corpora              names, sorted
    tlm:{T}:load:ID             the record           tlm:{T}:corpus-loads:NAME    ids of the loads, sorted by time
    tlm:loads                   open loads as T/ID   tlm:{T}:load-lease:ID        owner of the load; expires
    tlm:{T}:created-by:DIGEST   id of the dataset or load that a request with this digest created from uploads; expires
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import redis

from services.common.catalog_records import (
    OPEN,
    CorpusLoad,
    CorpusRecord,
    CorpusVersion,
    DatasetRecord,
    DatasetSummary,
    listed_dataset,
    listed_load,
    listed_versions,
    read_record,
)
from services.common.logs import request_id
from services.common.redis_client import PREFIX, check_disk, key, load_scripts
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.corpus.states import CorpusState, LoadState, NearDuplicatesChoice
from tlm_core.errors import AlreadyRunning, Conflict, NotFound, NotReady, StaleAttempt
from tlm_core.names import new_id
from tlm_core.wording import suggestion

_OPEN_LOADS = f"{PREFIX}:loads"
_REQUEST_SECONDS = 7 * 86_400
_SUGGESTED_FROM = 100  # records whose names an error can suggest


class Catalog:
    """The operations on datasets and corpora. Thread-safe. Raises StoreUnavailable, StoreFull or UnreadableRecord."""

    def __init__(self, client: redis.Redis) -> None:
        # redis-py types each answer as bytes, text, or awaitable; with decode_responses it is text.
        self._redis: Any = client
        self._script = load_scripts(client, Path(__file__).parent / "lua" / "catalog")

    # --- datasets -------------------------------------------------------------------------------------------------

    def add_dataset(
        self,
        tenant: str,
        dataset_id: str,
        name: str,
        *,
        raw: ManifestRef,
        report: ManifestRef,
        options: dict[str, object],
        summary: DatasetSummary,
        request: str = "",
    ) -> DatasetRecord:
        """Record a dataset durably as the next version of `name`, and return the record.

        request: digest of a request with resumable uploads, or "". For a repeated digest, return the earlier dataset.
        """
        check_disk(self._redis)
        # If the write below fails, the number stays unused. This is harmless: later uploads have higher numbers.
        version = self._redis.hincrby(key(tenant, "dataset-versions"), name, 1)
        record = DatasetRecord(
            id=dataset_id,
            tenant=tenant,
            name=name,
            version=version,
            raw=raw,
            report=report,
            options=options,
            summary=summary,
            created_at=self._now(),
        )
        keys = [key(tenant, "dataset", dataset_id), key(tenant, "datasets"), key(tenant, "dataset-name", name)]
        args = [dataset_id, record.model_dump_json(), version, _REQUEST_SECONDS, key(tenant, "dataset", "")]
        created = self._script["add_dataset"](keys=[*keys, _request_key(tenant, request)], args=args)
        return record if created == dataset_id else self.dataset(tenant, created)

    def created_by(self, tenant: str, request: str) -> str | None:
        """Return the id of the dataset or load that was recorded with the digest `request`, or None."""
        created: str | None = self._redis.get(_request_key(tenant, request))
        return created

    def dataset(self, tenant: str, id_or_name: str) -> DatasetRecord:
        """Return a dataset by its id, by its name (newest version), or by NAME@VERSION. Raises NotFound.

        VERSION is a number, as in `reviews@v3`, or the first 8 or more digits of the dataset's digest.
        """
        name, at, version = id_or_name.partition("@")
        if at:
            record = self._version(tenant, name, version)
            if record is None:
                raise NotFound(
                    f"No dataset '{id_or_name}'. Give the version as v1, v2, …, or as the first 8 or more digits of "
                    "its digest. List the datasets to see their names and versions."
                )
            return record
        body = self._redis.get(key(tenant, "dataset", id_or_name))
        if body is None:
            newest = self._redis.zrange(key(tenant, "dataset-name", id_or_name), -1, -1)
            body = self._redis.get(key(tenant, "dataset", newest[0])) if newest else None
        if body is None:
            names = (record.name for record in self.datasets(tenant, limit=_SUGGESTED_FROM)[0])
            hint = suggestion(id_or_name, names, "Upload it, or list the datasets to see their names.")
            raise NotFound(f"No dataset '{id_or_name}'. {hint}")
        return read_record(DatasetRecord, body, f"dataset '{id_or_name}'")

    def _version(self, tenant: str, name: str, version: str) -> DatasetRecord | None:
        for record in self._dataset_records(tenant, reversed(self.dataset_ids(tenant, name))):
            if version == f"v{record.version}" or (len(version) >= 8 and record.raw.digest.startswith(version)):
                return record
        return None

    def datasets(self, tenant: str, *, after: str | None = None, limit: int = 20) -> tuple[list[DatasetRecord], bool]:
        """Return up to `limit` datasets older than the dataset `after`, newest first, and whether there are more."""
        ids = self._names(key(tenant, "datasets"), after, limit + 1, newest_first=True)
        return self._dataset_records(tenant, ids[:limit]), len(ids) > limit

    def dataset_ids(self, tenant: str, id_or_name: str) -> list[str]:
        """Return the ids of all versions of NAME, or of NAME@VERSION ([] if unknown). Other text counts as an id."""
        name, at, version = id_or_name.partition("@")
        if at:
            record = self._version(tenant, name, version)
            return [record.id] if record else []
        ids = self._redis.zrange(key(tenant, "dataset-name", id_or_name), 0, -1)
        return list(ids) or [id_or_name]

    def _dataset_records(self, tenant: str, ids: Iterable[str]) -> list[DatasetRecord]:
        return [listed_dataset(tenant, *row) for row in self._bodies(tenant, "dataset", ids)]

    # --- corpora --------------------------------------------------------------------------------------------------

    def corpus(self, tenant: str, name: str) -> CorpusRecord:
        """Return a corpus with its versions. Raises NotFound if no corpus has this name."""
        pipe = self._redis.pipeline().zscore(key(tenant, "corpora"), name).hgetall(key(tenant, "corpus", name))
        score, bodies = pipe.execute()
        if score is None:
            names = self._names(key(tenant, "corpora"), None, _SUGGESTED_FROM)
            hint = suggestion(name, names, "Upload it, or list the corpora to see their names.")
            raise NotFound(f"No corpus '{name}'. {hint}")
        return CorpusRecord(tenant=tenant, name=name, versions=listed_versions(tenant, name, bodies))

    def ready_version(self, tenant: str, name: str, version: str | None = None) -> CorpusVersion:
        """Return a version of a corpus if it is ready. Without `version`, return the newest ready version.

        Raises NotFound for an unknown corpus or version. If the version is not ready, raises NotReady until its load
        has ended, and Conflict afterwards.
        """
        corpus = self.corpus(tenant, name)
        if version is not None:
            record = corpus.version(version)
            if record.state is CorpusState.FAILED:
                raise Conflict(f"Version {version} of corpus '{name}' failed to load. Upload it again.")
            if record.state is not CorpusState.READY:
                raise NotReady(f"Version {version} of corpus '{name}' is {record.state}. Wait until it is ready.")
            return record
        if ready := corpus.ready():
            return ready
        load = next(iter(self.loads(tenant, name, limit=1)), None)
        if ready := self.corpus(tenant, name).ready():  # The load may have ended after the first look-up.
            return ready
        if load and load.state in OPEN:
            raise NotReady(f"The load of corpus '{name}' is {load.state}. Wait until it has ended.", state=load.state)
        newest_load = f" Its newest load is {load.state}." if load else ""
        raise Conflict(
            f"Corpus '{name}' has no ready version.{newest_load} Upload it again.",
            state=load.state if load else "empty",
        )

    def corpora(self, tenant: str, *, after: str | None = None, limit: int = 20) -> tuple[list[CorpusRecord], bool]:
        """Return up to `limit` corpora with names after `after`, sorted by name, and whether there are more."""
        names = self._names(key(tenant, "corpora"), after, limit + 1)
        pipe = self._redis.pipeline(transaction=False)
        for name in names[:limit]:
            pipe.hgetall(key(tenant, "corpus", name))
        records = [
            CorpusRecord(tenant=tenant, name=name, versions=listed_versions(tenant, name, bodies))
            for name, bodies in zip(names[:limit], pipe.execute(), strict=True)
        ]
        return records, len(names) > limit

    def drop_corpus(self, tenant: str, corpus: str, version: str = "") -> None:
        """Delete the records of a corpus, its versions and its loads. With `version`, delete only the version's record.

        Call this method after the deletion of indexes and passages. Raises AlreadyRunning until all loads have ended.
        """
        keys = [key(tenant, "corpus", corpus), *_load_keys(tenant, corpus)]
        answer = self._script["drop_corpus"](keys=keys, args=[version, corpus, f"{tenant}/", key(tenant, "load", "")])
        _raise_if_open(corpus, answer)

    # --- loads ----------------------------------------------------------------------------------------------------

    def add_load(
        self,
        tenant: str,
        corpus: str,
        language: str,
        upload: ManifestRef,
        near_duplicates: NearDuplicatesChoice = "drop",
        sources: Sequence[str] = (),
        request: str = "",
    ) -> CorpusLoad:
        """Record durably that a loader must create a corpus version, and return the load.

        The version gets the texts in the files of `upload` and at the addresses `sources`. request: see `add_dataset`.
        Raises AlreadyRunning while an earlier load of the corpus has not ended.
        """
        check_disk(self._redis)
        load = CorpusLoad(
            id=new_id("load"),
            tenant=tenant,
            corpus=corpus,
            language=language,
            near_duplicates=near_duplicates,
            upload=upload,
            sources=tuple(sources),
            created_at=self._now(),
            request_id=request_id() or "",
        )
        keys = [key(tenant, "load", load.id), *_load_keys(tenant, corpus), _request_key(tenant, request)]
        args = (load.model_dump_json(), load.id, corpus, f"{tenant}/", _REQUEST_SECONDS, key(tenant, "load", ""))
        answer = self._script["add_load"](keys=keys, args=args)
        _raise_if_open(corpus, answer)
        return load if answer[1] == load.id else self.load(tenant, answer[1])

    def load(self, tenant: str, load_id: str) -> CorpusLoad:
        """Return the load with this id. Raises NotFound."""
        return self._read_load(tenant, load_id)[0]

    def load_of(self, tenant: str, corpus: str, load_id: str) -> CorpusLoad:
        """Return a load of a corpus. Raises NotFound if the load is unknown or belongs to another corpus."""
        self.corpus(tenant, corpus)
        load = self.load(tenant, load_id)
        if load.corpus != corpus:
            raise NotFound(f"Load {load_id} belongs to corpus '{load.corpus}', not to '{corpus}'. Use '{load.corpus}'.")
        return load

    def loads(self, tenant: str, corpus: str, *, limit: int = 10) -> list[CorpusLoad]:
        """Return the last `limit` loads of a corpus, newest first."""
        ids = self._names(key(tenant, "corpus-loads", corpus), None, limit, newest_first=True)
        return [listed_load(tenant, corpus, *row) for row in self._bodies(tenant, "load", ids)]

    def open_load(self, tenant: str, corpus: str) -> CorpusLoad | None:
        """Return the load of a corpus that has not ended, or None."""
        return next((load for load in self.loads(tenant, corpus) if load.state in OPEN), None)

    def open_loads(self) -> list[tuple[str, str]]:
        """Return (tenant, load id) of each load that has not ended, oldest first."""
        members = self._redis.smembers(_OPEN_LOADS)
        pairs = [member.partition("/") for member in members]
        return sorted(((tenant, load) for tenant, _, load in pairs), key=lambda pair: pair[1])

    def lease_load(self, tenant: str, load_id: str, owner: str, seconds: int) -> bool:
        """Acquire or renew the lease of a load for `seconds`. Returns False if another owner holds the lease."""
        return bool(self._script["lease"](keys=[key(tenant, "load-lease", load_id)], args=[owner, seconds]))

    def cancel_load(self, tenant: str, load_id: str) -> CorpusLoad:
        """Set the state of a load to `cancelling`, and return the load. A repeated call has no effect.

        A loader then deletes the files of the load. Raises NotFound, or Conflict for a load that is ready or failed.
        """
        while True:
            load, body = self._read_load(tenant, load_id)
            if load.state in (LoadState.CANCELLING, LoadState.CANCELLED):
                return load
            if load.state not in OPEN:
                raise Conflict(
                    f"Load {load_id} is {load.state}, so it cannot be cancelled. If it loaded a corpus version that "
                    "you do not need, delete this version."
                )
            cancelling = load.model_copy(update={"state": LoadState.CANCELLING})
            keys = [key(tenant, "load", load_id)]
            if self._script["swap_load"](keys=keys, args=[body, cancelling.model_dump_json()]):
                return cancelling

    def save_load(
        self, load: CorpusLoad, owner: str, version: CorpusVersion | None = None, *, delete_version: str = ""
    ) -> None:
        """Save a load. In the same atomic step, save the corpus version `version`, or delete `delete_version`.

        delete_version: the name of a corpus version. Raises StaleAttempt if `owner` does not hold the lease. A load in
        the state `cancelling` can change only to `cancelled`: any other state also raises StaleAttempt.
        """
        parts = (("load-lease", load.id), ("load", load.id), ("corpus", load.corpus))
        args = [
            owner,
            load.model_dump_json(),
            version.version if version else delete_version,
            version.model_dump_json() if version else "",
            "" if load.state in OPEN else f"{load.tenant}/{load.id}",
            load.state,
        ]
        answer = self._script["save_load"](keys=[*(key(load.tenant, *part) for part in parts), _OPEN_LOADS], args=args)
        if answer == -1:
            raise StaleAttempt(f"Load {load.id} is being cancelled. This process must not write to it.")
        if not answer:
            raise StaleAttempt(
                f"This process lost the lease of load {load.id}, so it stopped writing to the load. The loader that "
                "holds the lease next continues the load."
            )

    # --- reads ----------------------------------------------------------------------------------------------------

    def _read_load(self, tenant: str, load_id: str) -> tuple[CorpusLoad, str]:
        body = self._redis.get(key(tenant, "load", load_id))
        if body is None:
            raise NotFound(f"No load '{load_id}'. `tlm corpus show NAME` lists the loads of a corpus.")
        return read_record(CorpusLoad, body, f"load {load_id}"), body

    def _bodies(self, tenant: str, kind: str, ids: Iterable[str]) -> list[tuple[str, str]]:
        """Return (id, record as JSON) for each of `ids` that has a record."""
        ids = list(ids)
        bodies = self._redis.mget([key(tenant, kind, record_id) for record_id in ids]) if ids else []
        return [(record_id, body) for record_id, body in zip(ids, bodies, strict=True) if body is not None]

    def _names(self, index: str, after: str | None, limit: int, *, newest_first: bool = False) -> list[str]:
        """Return up to `limit` members of the sorted set `index` that follow `after`, sorted. All scores are 0."""
        start, end = (f"({after}" if after else ("+" if newest_first else "-")), ("-" if newest_first else "+")
        return list(self._redis.zrange(index, start, end, desc=newest_first, bylex=True, offset=0, num=limit))

    def _now(self) -> float:
        seconds, micros = self._redis.time()
        return float(seconds) + micros / 1e6


def dataset_keys(tenant: str, dataset_ids: Iterable[str]) -> list[str]:
    """Return the Redis keys of the records of datasets, for the argument `needs` of `JobStore.submit`."""
    return [key(tenant, "dataset", dataset_id) for dataset_id in dataset_ids]


def _request_key(tenant: str, request: str) -> str:
    return key(tenant, "created-by", request) if request else ""


def _load_keys(tenant: str, corpus: str) -> list[str]:
    return [key(tenant, "corpora"), key(tenant, "corpus-loads", corpus), _OPEN_LOADS]


def _raise_if_open(corpus: str, answer: list[str]) -> None:
    if answer[0] == "open":
        message = f"Load {answer[1]} of corpus '{corpus}' has not ended. Wait until it ends, then try again."
        raise AlreadyRunning(message, load=answer[1])
