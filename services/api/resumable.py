"""Uploads in parts: what has arrived is kept in storage, so that a broken connection, or a gateway that is started
anew, costs at most one part.

Create an upload with name, size and, better, the SHA-256; put the parts one after the other, each saying with
Content-Range where it begins; look at `offset` after anything went wrong, and go on there; then name the upload where
a data set or a corpus is made of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from starlette.concurrency import run_in_threadpool

from services.api.uploads import ReceivedFile, harmless
from services.common.redis_client import key, translated_errors
from tlm_core.artifacts import ArtifactStore, storage_errors
from tlm_core.errors import Conflict, InvalidRequest, NotFound
from tlm_core.jobs.spec import new_id
from tlm_core.wire import Upload

PART_BYTES = 32 << 20
_KEPT_SECONDS = 3 * 86_400
_RANGE = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16})", re.ASCII)

# KEYS: upload, its parts. ARGV: where the part begins, its length, its name, seconds kept.
# Answers {'ok', offset}, {'missing', ''} or {'offset', offset}: the part does not begin where the last one ended.
_APPEND = """
local offset = redis.call('HGET', KEYS[1], 'offset')
if not offset then return {'missing', ''} end
if offset ~= ARGV[1] then return {'offset', offset} end
local now = redis.call('HINCRBY', KEYS[1], 'offset', ARGV[2])
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'ok', tostring(now)}
"""


class Uploads:
    """Keeps uploads under way in Redis (what has arrived) and storage (the parts). Raises the errors of both."""

    def __init__(self, client: redis.Redis, artifacts: ArtifactStore, scratch: Path, *, max_bytes: int) -> None:
        self._redis: Any = client
        self._artifacts = artifacts
        self._scratch = scratch
        self._max_bytes = max_bytes
        self._append = client.register_script(_APPEND)

    def create(self, tenant: str, name: str, size: int, sha256: str | None) -> Upload:
        if size > self._max_bytes:
            raise InvalidRequest(f"{size:,} bytes are more than the {self._max_bytes:,} that are taken at once")
        self._sweep(tenant)
        fields = {"name": harmless(name), "size": size, "sha256": sha256 or "", "offset": 0}
        upload = _upload(new_id("upl"), fields)
        with translated_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.hset(self._key(tenant, upload.id), mapping={**fields, "created_at": time.time()})
            pipe.expire(self._key(tenant, upload.id), _KEPT_SECONDS)
            pipe.execute()
        return upload

    def get(self, tenant: str, upload_id: str) -> Upload:
        with translated_errors():
            fields = self._redis.hgetall(self._key(tenant, upload_id))
        if not fields:
            raise NotFound(f"no upload '{upload_id}'; it is over, or was left alone for too long: create it anew")
        return _upload(upload_id, fields)

    async def put(self, tenant: str, upload_id: str, content_range: str | None, body: AsyncIterator[bytes]) -> Upload:
        """Keep a part. Raises Conflict with the `offset` at which the next one has to begin, InvalidRequest."""
        upload = await run_in_threadpool(self.get, tenant, upload_id)
        begin, length = _range(content_range, upload)
        if begin != upload.offset:
            raise _elsewhere(upload.id, upload.offset)
        local = self._scratch / "uploads" / uuid.uuid4().hex
        try:
            received = await self._receive(body, local, length)
            if received != length:
                raise InvalidRequest(
                    f"the part has {received:,} bytes, but Content-Range names {length:,}; send it again"
                )
            await run_in_threadpool(self._keep, tenant, upload, local, begin, length)
        finally:
            local.unlink(missing_ok=True)
        return await run_in_threadpool(self.get, tenant, upload_id)

    def delete(self, tenant: str, upload_id: str) -> None:
        """Forget an upload and what has arrived of it."""
        with translated_errors():
            self._redis.delete(self._key(tenant, upload_id), self._key(tenant, upload_id, "parts"))
        self._artifacts.delete(self._folder(tenant, upload_id))

    @contextmanager
    def files(self, tenant: str, uploads: Sequence[tuple[str, str]]) -> Iterator[list[ReceivedFile]]:
        """(field, upload id) as files that lie here whole and checked. When the block ends well the uploads are over;
        else they stay, so that what made of them can be asked for again.

        Raises Conflict for one that has not arrived whole, InvalidRequest for one that is not what its SHA-256 says.
        """
        folder = self._scratch / "uploads" / uuid.uuid4().hex
        with storage_errors("putting the upload together"):
            folder.mkdir(parents=True)
        try:
            found: list[ReceivedFile] = []
            for number, (field, upload_id) in enumerate(uploads):
                upload = self.get(tenant, upload_id)
                # In a folder of its own it keeps its name, by which faults are told and its type is known.
                name = harmless(upload.name, {other.name for other in found})
                found.append(self._assembled(tenant, field, upload, folder / str(number) / name))
            yield found
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for _, upload_id in uploads:
            self.delete(tenant, upload_id)

    async def _receive(self, body: AsyncIterator[bytes], local: Path, length: int) -> int:
        """Write the body to `local`, as far as it may go; returns its bytes."""
        received = 0
        with storage_errors("receiving the part"):
            local.parent.mkdir(parents=True, exist_ok=True)
            with open(local, "wb") as handle:
                async for piece in body:
                    received += len(piece)
                    if received > length:
                        break
                    await run_in_threadpool(handle.write, piece)
                handle.flush()
                await run_in_threadpool(os.fsync, handle.fileno())
        return received

    def _keep(self, tenant: str, upload: Upload, local: Path, begin: int, length: int) -> None:
        # Names are never used twice: of two that send the same part at once, one is kept and the other's file dropped.
        name = f"{begin:016d}-{uuid.uuid4().hex}"
        target = self._artifacts.path(self._folder(tenant, upload.id), name)
        with self._artifacts.errors("keeping the part", writes=True):
            self._artifacts.fs.makedirs(os.path.dirname(target), exist_ok=True)
            if self._artifacts.local:
                shutil.move(local, target)
            else:
                self._artifacts.fs.put_file(str(local), target)
        keys = [self._key(tenant, upload.id), self._key(tenant, upload.id, "parts")]
        with translated_errors():
            kind, offset = self._append(keys=keys, args=[begin, length, name, _KEPT_SECONDS])
        if kind != "ok":
            self._artifacts.delete(f"{self._folder(tenant, upload.id)}/{name}")
            raise _elsewhere(upload.id, int(offset)) if kind == "offset" else NotFound(f"no upload '{upload.id}'")

    def _assembled(self, tenant: str, field: str, upload: Upload, target: Path) -> ReceivedFile:
        if upload.offset < upload.size:
            raise Conflict(
                f"of upload {upload.id} only {upload.offset:,} of {upload.size:,} bytes have arrived; send the rest",
                offset=upload.offset,
            )
        with translated_errors():
            parts = self._redis.lrange(self._key(tenant, upload.id, "parts"), 0, -1)
        digest = hashlib.sha256()
        with self._artifacts.errors("putting the upload together"):
            target.parent.mkdir()
            with open(target, "wb") as out:
                for part in parts:
                    with self._artifacts.fs.open(
                        self._artifacts.path(self._folder(tenant, upload.id), part), "rb"
                    ) as piece:
                        while block := piece.read(1 << 20):
                            digest.update(block)
                            out.write(block)
        if upload.sha256 is not None and digest.hexdigest() != upload.sha256:
            self.delete(tenant, upload.id)
            raise InvalidRequest(f"the bytes of upload {upload.id} do not match its SHA-256; upload the file again")
        return ReceivedFile(field, target.name, target, upload.size)

    def _sweep(self, tenant: str) -> None:
        """Delete parts whose upload is forgotten."""
        root = self._artifacts.path(f"{tenant}/parts")
        with self._artifacts.errors("looking for old uploads"):
            found = self._artifacts.fs.ls(root, detail=False) if self._artifacts.fs.exists(root) else []
        for path in found:
            upload_id = str(path).rstrip("/").rsplit("/", 1)[-1]
            with translated_errors():
                known = self._redis.exists(self._key(tenant, upload_id))
            if not known:
                self._artifacts.delete(self._folder(tenant, upload_id))

    @staticmethod
    def _folder(tenant: str, upload_id: str) -> str:
        return f"{tenant}/parts/{upload_id}"

    @staticmethod
    def _key(tenant: str, upload_id: str, *more: str) -> str:
        return key(tenant, "upload", upload_id, *more)


def _upload(upload_id: str, fields: Mapping[str, Any]) -> Upload:
    return Upload(
        id=upload_id,
        name=fields["name"],
        size=int(fields["size"]),
        sha256=fields["sha256"] or None,
        offset=int(fields["offset"]),
        part_bytes=PART_BYTES,
        expires_seconds=_KEPT_SECONDS,
    )


def _range(header: str | None, upload: Upload) -> tuple[int, int]:
    """(begin, length) that a Content-Range names. Raises InvalidRequest."""
    found = _RANGE.fullmatch(header or "")
    if found is None:
        raise InvalidRequest("say where the part belongs: 'Content-Range: bytes FIRST-LAST/SIZE'")
    first, last, size = map(int, found.groups())
    if size != upload.size or not first <= last < size:
        raise InvalidRequest(f"'{header}' does not lie in the {upload.size:,} bytes of the upload")
    if last - first + 1 > PART_BYTES:
        raise InvalidRequest(f"a part has at most {PART_BYTES:,} bytes; send smaller ones")
    return first, last - first + 1


def _elsewhere(upload_id: str, offset: int) -> Conflict:
    return Conflict(f"the next part of {upload_id} begins at byte {offset}; go on there", offset=offset)
