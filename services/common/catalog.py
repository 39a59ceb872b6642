"""What tenants have uploaded: data sets, corpora with their versions, and loads of corpora under way. In Redis.

Records are small JSON values; the bytes lie in storage and are named by ManifestRef. Every write is one atomic step.

Keys (prefix `tlm`, tenant in braces):
    tlm:{T}:dataset:ID          the record           tlm:{T}:datasets             ids, sorted by id (that is: by time)
    tlm:{T}:dataset-name:NAME   ids of that name, scored by version
    tlm:{T}:corpus:NAME         version → record     tlm:{T}:corpora              names, sorted
    tlm:{T}:load:ID             the record           tlm:{T}:corpus-loads:NAME    ids of the loads, sorted by time
    tlm:loads                   open loads as T/ID   tlm:{T}:load-lease:ID        who works on it; runs out by itself
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis

from services.common.catalog_records import OPEN, CorpusLoad, CorpusRecord, CorpusVersion, DatasetRecord
from services.common.redis_client import PREFIX, translated_errors
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import AlreadyRunning, Conflict, NotFound, StaleAttempt
from tlm_core.jobs.spec import new_id
from tlm_core.wire import CorpusState, LoadState, NearDuplicatesChoice

# KEYS: lease, load, corpus hash, open loads. ARGV: owner, load (JSON), version ('' = none), version record (JSON;
# '' = forget it), member when the load is over ('' = still open), state of the load. Answers 0 if the lease is
# another's, -1 if the load is being cancelled and this is not the end of that.
_SAVE_LOAD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local kept = redis.call('GET', KEYS[2])
if kept and cjson.decode(kept).state == 'cancelling' and ARGV[6] ~= 'cancelled' then return -1 end
redis.call('SET', KEYS[2], ARGV[2])
if ARGV[3] ~= '' and ARGV[4] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], ARGV[4]) end
if ARGV[3] ~= '' and ARGV[4] == '' then redis.call('HDEL', KEYS[3], ARGV[3]) end
if ARGV[5] ~= '' then redis.call('SREM', KEYS[4], ARGV[5]) redis.call('DEL', KEYS[1]) end
return 1
"""
# KEYS: load. ARGV: load (JSON) as it was read, as it is to be. Answers 1 if nobody changed it in between.
_SWAP_LOAD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
# KEYS: load, all corpora, loads of the corpus, open loads. ARGV: load (JSON), its id, corpus, tenant and slash.
# Answers {'ok'}, or {'open', id of a load of this corpus that is not over}.
_ADD_LOAD = """
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if redis.call('SISMEMBER', KEYS[4], ARGV[4] .. id) == 1 then return {'open', id} end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], 0, ARGV[3])
redis.call('ZADD', KEYS[3], 0, ARGV[2])
redis.call('SADD', KEYS[4], ARGV[4] .. ARGV[2])
return {'ok'}
"""
# KEYS: corpus hash, all corpora, loads of the corpus, open loads. ARGV: version ('' = the whole corpus), corpus,
# tenant and slash, prefix of load records. Answers as _ADD_LOAD.
_DROP_CORPUS = """
local ids = redis.call('ZRANGE', KEYS[3], 0, -1)
for _, id in ipairs(ids) do
  if redis.call('SISMEMBER', KEYS[4], ARGV[3] .. id) == 1 then return {'open', id} end
end
if ARGV[1] ~= '' then redis.call('HDEL', KEYS[1], ARGV[1]) return {'ok'} end
for _, id in ipairs(ids) do redis.call('DEL', ARGV[4] .. id) end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[2])
return {'ok'}
"""
# KEYS: lease. ARGV: owner, seconds. Answers 1 if the lease is this owner's now.
_LEASE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""


class Catalog:
    """All operations on data sets and corpora. Thread-safe. Raises StoreUnavailable when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._save_load = client.register_script(_SAVE_LOAD)
        self._swap_load = client.register_script(_SWAP_LOAD)
        self._lease = client.register_script(_LEASE)
        self._add_load = client.register_script(_ADD_LOAD)
        self._drop_corpus = client.register_script(_DROP_CORPUS)

    # --- data sets ------------------------------------------------------------------------------------------------

    def add_dataset(
        self,
        tenant: str,
        dataset_id: str,
        name: str,
        *,
        raw: ManifestRef,
        report: ManifestRef,
        options: dict[str, Any],
        summary: dict[str, Any],
    ) -> DatasetRecord:
        """Record an upload as the next version under `name`; durable when this returns."""
        with translated_errors():
            # A number that is drawn and never used leaves a gap; what matters is that later uploads have higher ones.
            version = self._redis.hincrby(_key(tenant, "dataset-versions"), name, 1)
            record = DatasetRecord(
                id=dataset_id, tenant=tenant, name=name, version=version, raw=raw, report=report, options=options,
                summary=summary, created_at=self._now(),
            )  # fmt: skip
            pipe = self._redis.pipeline(transaction=True)
            pipe.set(_key(tenant, "dataset", dataset_id), record.model_dump_json())
            pipe.zadd(_key(tenant, "datasets"), {dataset_id: 0})
            pipe.zadd(_key(tenant, "dataset-name", name), {dataset_id: version})
            pipe.execute()
        return record

    def dataset(self, tenant: str, id_or_name: str) -> DatasetRecord:
        """The data set of that id, else the newest of that name, or of it the version that is named behind an @: by
        number (`reviews@v3`) or by at least 8 digits of its digest. Raises NotFound."""
        name, at, which = id_or_name.partition("@")
        if at:
            found = self._version(tenant, name, which)
            if found is None:
                raise NotFound(
                    f"data set '{name}' has no version '{which}'; give v and its number, or 8 digits of its digest"
                )
            return found
        with translated_errors():
            body = self._redis.get(_key(tenant, "dataset", id_or_name))
            if body is None:
                newest: Any = self._redis.zrange(_key(tenant, "dataset-name", id_or_name), -1, -1)
                body = self._redis.get(_key(tenant, "dataset", newest[0])) if newest else None
        if body is None:
            raise NotFound(f"no data set '{id_or_name}'; upload it, or list the data sets to see their names")
        return DatasetRecord.model_validate_json(body)

    def _version(self, tenant: str, name: str, which: str) -> DatasetRecord | None:
        ids = self.dataset_ids(tenant, name)
        with translated_errors():
            bodies = self._redis.mget([_key(tenant, "dataset", one) for one in reversed(ids)])
        for body in bodies:
            if body is not None:
                record = DatasetRecord.model_validate_json(body)
                if which == f"v{record.version}" or (len(which) >= 8 and record.raw.digest.startswith(which)):
                    return record
        return None

    def datasets(self, tenant: str, *, after: str | None = None, limit: int = 20) -> tuple[list[DatasetRecord], bool]:
        """Data sets, newest first, those older than `after`; and whether there are more."""
        with translated_errors():
            ids = self._names(_key(tenant, "datasets"), after, limit + 1, newest_first=True)
            bodies = self._redis.mget([_key(tenant, "dataset", i) for i in ids[:limit]]) if ids else []
        return [DatasetRecord.model_validate_json(b) for b in bodies if b is not None], len(ids) > limit

    def dataset_ids(self, tenant: str, id_or_name: str) -> list[str]:
        """Ids of every version that a name stands for, or of the one that is named behind an @, if there is one; an id
        stands for itself."""
        name, at, which = id_or_name.partition("@")
        if at:
            version = self._version(tenant, name, which)
            return [version.id] if version else []
        with translated_errors():
            found: Any = self._redis.zrange(_key(tenant, "dataset-name", id_or_name), 0, -1)
        return list(found) or [id_or_name]

    # --- corpora --------------------------------------------------------------------------------------------------

    def corpus(self, tenant: str, name: str) -> CorpusRecord:
        """Raises NotFound for a name under which nothing was ever uploaded."""
        with translated_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.zscore(_key(tenant, "corpora"), name)
            pipe.hvals(_key(tenant, "corpus", name))
            known, bodies = pipe.execute()
        if known is None:
            raise NotFound(f"no corpus '{name}'; upload it, or list the corpora to see their names")
        return _corpus(tenant, name, bodies)

    def corpora(self, tenant: str, *, after: str | None = None, limit: int = 20) -> tuple[list[CorpusRecord], bool]:
        """Corpora by name, those after `after`; and whether there are more."""
        with translated_errors():
            names = self._names(_key(tenant, "corpora"), after, limit + 1)
            pipe = self._redis.pipeline(transaction=False)
            for name in names[:limit]:
                pipe.hvals(_key(tenant, "corpus", name))
            found = pipe.execute()
        return [_corpus(tenant, n, b) for n, b in zip(names[:limit], found, strict=True)], len(names) > limit

    def add_load(
        self,
        tenant: str,
        corpus: str,
        language: str,
        upload: ManifestRef,
        near_duplicates: NearDuplicatesChoice = "drop",
        sources: Sequence[str] = (),
    ) -> CorpusLoad:
        """Record an upload, and addresses to fetch from, that are to become a version; durable when this returns.

        Raises AlreadyRunning while an earlier upload of this corpus is on its way.
        """
        with translated_errors():
            load = CorpusLoad(
                id=new_id("load"),
                tenant=tenant,
                corpus=corpus,
                language=language,
                near_duplicates=near_duplicates,
                upload=upload,
                sources=tuple(sources),
                created_at=self._now(),
            )
            keys = [_key(tenant, "load", load.id), *self._keys_of_loads(tenant, corpus)]
            answer: Any = self._add_load(keys=keys, args=[load.model_dump_json(), load.id, corpus, f"{tenant}/"])
        _refuse_while_open(corpus, answer)
        return load

    def drop_corpus(self, tenant: str, corpus: str, version: str = "") -> None:
        """Forget a corpus, or one version of it; the caller has deleted what the records name.

        Raises AlreadyRunning while an upload of it is on its way.
        """
        with translated_errors():
            keys = [_key(tenant, "corpus", corpus), *self._keys_of_loads(tenant, corpus)]
            answer: Any = self._drop_corpus(keys=keys, args=[version, corpus, f"{tenant}/", _key(tenant, "load", "")])
        _refuse_while_open(corpus, answer)

    def open_load(self, tenant: str, corpus: str) -> CorpusLoad | None:
        """The upload of a corpus that is on its way, if there is one."""
        return next((load for load in self.loads(tenant, corpus) if load.state in OPEN), None)

    @staticmethod
    def _keys_of_loads(tenant: str, corpus: str) -> list[str]:
        return [_key(tenant, "corpora"), _key(tenant, "corpus-loads", corpus), f"{PREFIX}:loads"]

    def load(self, tenant: str, load_id: str) -> CorpusLoad:
        """Raises NotFound."""
        with translated_errors():
            body: Any = self._redis.get(_key(tenant, "load", load_id))
        return _load(load_id, body)

    def load_of(self, tenant: str, corpus: str, load_id: str) -> CorpusLoad:
        """Raises NotFound for a load of another corpus too."""
        self.corpus(tenant, corpus)
        found = self.load(tenant, load_id)
        if found.corpus != corpus:
            raise NotFound(f"load {load_id} is of corpus '{found.corpus}', not of '{corpus}'; ask for it there")
        return found

    def loads(self, tenant: str, corpus: str, *, limit: int = 10) -> list[CorpusLoad]:
        """The latest loads of a corpus, newest first."""
        with translated_errors():
            ids = self._names(_key(tenant, "corpus-loads", corpus), None, limit, newest_first=True)
            bodies = self._redis.mget([_key(tenant, "load", i) for i in ids]) if ids else []
        return [CorpusLoad.model_validate_json(b) for b in bodies if b is not None]

    # --- work on loads --------------------------------------------------------------------------------------------

    def open_loads(self) -> list[tuple[str, str]]:
        """(tenant, load id) of every load that is not over, oldest first."""
        with translated_errors():
            members: Any = self._redis.smembers(f"{PREFIX}:loads")
        pairs = [m.partition("/") for m in members]
        return sorted(((tenant, load) for tenant, _, load in pairs), key=lambda pair: pair[1])

    def lease_load(self, tenant: str, load_id: str, owner: str, seconds: int) -> bool:
        """Take or keep the right to work on a load. False: another one has it."""
        with translated_errors():
            return bool(self._lease(keys=[_key(tenant, "load-lease", load_id)], args=[owner, seconds]))

    def cancel_load(self, tenant: str, load_id: str) -> CorpusLoad:
        """Ask for the end of a load: `cancelling` from now on, until whoever works on it has undone it. Twice is no
        error. Raises NotFound, Conflict for a load that is over already."""
        while True:
            with translated_errors():
                body: Any = self._redis.get(_key(tenant, "load", load_id))
            load = _load(load_id, body)
            if load.state in (LoadState.CANCELLING, LoadState.CANCELLED):
                return load
            if load.state not in OPEN:
                raise Conflict(f"load {load_id} is {load.state} and cannot be cancelled; delete its version instead")
            asked = load.model_copy(update={"state": LoadState.CANCELLING})
            with translated_errors():
                if self._swap_load(keys=[_key(tenant, "load", load_id)], args=[body, asked.model_dump_json()]):
                    return asked

    def save_load(
        self, load: CorpusLoad, owner: str, version: CorpusVersion | None = None, *, forget: str = ""
    ) -> None:
        """Store how far a load is, and its version with it, or the version `forget` no more.

        Raises StaleAttempt if the lease is not the owner's, or the load is being cancelled and this is not the end of
        that.
        """
        over = "" if load.state in OPEN else f"{load.tenant}/{load.id}"
        keys = [
            _key(load.tenant, "load-lease", load.id),
            _key(load.tenant, "load", load.id),
            _key(load.tenant, "corpus", load.corpus),
            f"{PREFIX}:loads",
        ]
        args = [
            owner,
            load.model_dump_json(),
            version.version if version else forget,
            version.model_dump_json() if version else "",
            over,
            load.state,
        ]
        with translated_errors():
            answer: Any = self._save_load(keys=keys, args=args)
        if answer == -1:
            raise StaleAttempt(f"load {load.id} is being cancelled")
        if not answer:
            raise StaleAttempt(f"the lease on load {load.id} is over; another process works on it")

    def _names(self, key: str, after: str | None, limit: int, *, newest_first: bool = False) -> list[str]:
        """At most `limit` members of a sorted set whose scores are all 0, in the order of their bytes."""
        start, end = (f"({after}" if after else ("+" if newest_first else "-")), ("-" if newest_first else "+")
        found: Any = self._redis.zrange(key, start, end, desc=newest_first, bylex=True, offset=0, num=limit)
        return list(found)

    def _now(self) -> float:
        seconds, micros = self._redis.time()
        return float(seconds) + micros / 1e6


def ready_version(corpus: CorpusRecord, version: str | None, load: CorpusLoad | None) -> CorpusVersion:
    """The version a job or a search means. Raises NotFound, or Conflict with the state of what is not ready yet."""
    if version is not None:
        found = corpus.version(version)
        if found.state is not CorpusState.READY:
            raise Conflict(f"version {version} of corpus '{corpus.name}' is {found.state}; wait until it is ready")
        return found
    newest = corpus.ready()
    if newest is None:
        state = load.state if load else "empty"
        advice = "wait until it is ready" if load and load.state in OPEN else "upload it again"
        raise Conflict(f"corpus '{corpus.name}' is {state}; {advice}", state=state)
    return newest


def _load(load_id: str, body: str | None) -> CorpusLoad:
    if body is None:
        raise NotFound(f"no load '{load_id}'; look at the corpus to see its loads")
    return CorpusLoad.model_validate_json(body)


def dataset_keys(tenant: str, dataset_ids: Iterable[str]) -> list[str]:
    """Keys of data sets' records: a job that needs them is accepted in one step with a look at them."""
    return [_key(tenant, "dataset", one) for one in dataset_ids]


def _refuse_while_open(corpus: str, answer: Any) -> None:
    if answer[0] == "open":
        raise AlreadyRunning(
            f"an upload of corpus '{corpus}' is on its way ({answer[1]}); wait until it is over, then ask again",
            load=answer[1],
        )


def _key(tenant: str, *parts: str) -> str:
    return ":".join((PREFIX, f"{{{tenant}}}", *parts))


def _corpus(tenant: str, name: str, bodies: list[str]) -> CorpusRecord:
    versions = [CorpusVersion.model_validate_json(body) for body in bodies]
    versions.sort(key=lambda v: (v.created_at, v.version), reverse=True)
    return CorpusRecord(tenant=tenant, name=name, versions=tuple(versions))
