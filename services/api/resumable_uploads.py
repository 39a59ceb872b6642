"""Uploads in parts, which a client can resume after a broken connection or a restart of the gateway.

A client creates an upload with its name, its size and optionally its SHA-256. Then the client sends the parts in order,
each with the header Content-Range. After an interruption, the client reads `offset` and continues there. Finally, the
client creates a dataset or a corpus from the upload.
"""

from __future__ import annotations

import hashlib
import logging
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

from services.api.forms import ReceivedFile, SafeNames, safe_name
from services.common.redis_client import check_disk, key, load_scripts
from tlm_core.artifacts import storage_errors, temporary_folder
from tlm_core.artifacts.store import ArtifactStore, deadline
from tlm_core.errors import Conflict, InvalidRequest, NotFound, Outage
from tlm_core.names import ID_DIGITS, new_id
from tlm_core.wire import Upload

log = logging.getLogger(__name__)

PART_BYTES = 32 << 20
_EXPIRES_SECONDS = 3 * 86_400
_ID = re.compile(rf"upl_{ID_DIGITS}")
_RANGE = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16})", re.ASCII)


class Uploads:
    """Uploads in progress: offsets in Redis, and parts in the storage. Methods raise the errors of both."""

    def __init__(self, client: redis.Redis, artifacts: ArtifactStore, scratch: Path, *, max_bytes: int) -> None:
        self._redis: Any = client
        self._artifacts = artifacts
        self._scratch = scratch / "uploads"
        self._max_bytes = max_bytes
        self._script = load_scripts(client, Path(__file__).parent / "lua")

    def check_space(self, size: int) -> None:
        """Raise StoreFull if the disk of Redis is almost full, or StorageFull if the storage cannot hold `size` bytes.

        Call this method before you receive a body. A body may fill the disk of Redis, and a full disk ends Redis.
        """
        check_disk(self._redis)
        with self._artifacts.errors("receiving the upload", writes=True):
            self._artifacts.check_space(size)

    def create(self, tenant: str, name: str, size: int, sha256: str | None) -> Upload:
        if size > self._max_bytes:
            raise InvalidRequest(
                f"The file of {size:,} bytes exceeds the limit of {self._max_bytes:,} bytes. Send a smaller file."
            )
        self.check_space(size)
        fields: dict[str, str | int] = {"name": safe_name(name), "size": size, "sha256": sha256 or "", "offset": 0}
        upload = _upload(new_id("upl"), fields)
        pipe = self._redis.pipeline().hset(_key(tenant, upload.id), mapping={**fields, "created_at": time.time()})
        pipe.expire(_key(tenant, upload.id), _EXPIRES_SECONDS).execute()
        return upload

    def get(self, tenant: str, upload_id: str) -> Upload:
        """Return the upload with this id. Raises NotFound."""
        # A text that is not an id could name another key in Redis, such as the list of the parts of an upload.
        fields = self._redis.hgetall(_key(tenant, upload_id)) if _ID.fullmatch(upload_id) else {}
        if not fields:
            raise _unknown(upload_id)
        return _upload(upload_id, fields)

    async def put(self, tenant: str, upload_id: str, content_range: str | None, body: AsyncIterator[bytes]) -> Upload:
        """Store a part, return the updated upload. Raises NotFound, InvalidRequest, and Conflict for a wrong offset."""
        upload = await run_in_threadpool(self.get, tenant, upload_id)
        begin, length = _range(content_range, upload)
        if begin != upload.offset:
            raise _wrong_offset(upload.id, upload.offset)
        await run_in_threadpool(self.check_space, upload.size - begin)
        with temporary_folder(self._scratch, "receiving the part") as folder:
            received = await _receive(body, folder / "part", length)
            if received != length:
                raise InvalidRequest(
                    f"The service received {received:,} bytes, but Content-Range gives {length:,}. Send the part again."
                )
            await run_in_threadpool(self._store_part, tenant, upload, folder / "part", begin, length)
        return await run_in_threadpool(self.get, tenant, upload_id)

    def delete(self, tenant: str, upload_id: str) -> None:
        """Delete an upload and its parts."""
        self._redis.delete(_key(tenant, upload_id), _key(tenant, upload_id, "parts"))
        self._artifacts.delete(_folder(tenant, upload_id))

    @contextmanager
    def files(self, tenant: str, uploads: Sequence[tuple[str, str]]) -> Iterator[list[ReceivedFile]]:
        """Yield the received files of `uploads`, in their order. uploads: (form field, upload id) of each file.

        The files exist only in the block. If the block succeeds, delete the uploads. Raises NotFound, Conflict for an
        incomplete upload, and InvalidRequest for an upload that does not match its SHA-256.
        """
        with temporary_folder(self._scratch, "assembling the upload") as folder:
            files, names = list[ReceivedFile](), SafeNames()
            for number, (field, upload_id) in enumerate(uploads):
                upload = self.get(tenant, upload_id)
                files.append(self._assemble(tenant, field, upload, folder / str(number) / names.add(upload.name)))
            yield files
        for _, upload_id in uploads:
            self._clean_up(tenant, upload_id)

    def _clean_up(self, tenant: str, upload_id: str) -> None:
        """Delete an upload. Log an outage: the record expires later, and then a coordinator deletes the parts."""
        try:
            self.delete(tenant, upload_id)
        except Outage as error:
            log.warning("Cannot delete upload %s now. It expires: %s", upload_id, error)

    def _store_part(self, tenant: str, upload: Upload, local: Path, begin: int, length: int) -> None:
        # The name is unique. If two clients send the same part, one file is recorded, and the other file is deleted.
        name = f"{begin:016d}-{uuid.uuid4().hex}"
        target = self._artifacts.path(_folder(tenant, upload.id), name)
        with self._artifacts.errors("storing the part", writes=True):
            self._artifacts.fs.makedirs(os.path.dirname(target), exist_ok=True)
            if self._artifacts.local:
                shutil.move(local, target)
            else:
                self._artifacts.fs.put_file(str(local), target, **deadline(self._artifacts.fs, length))
        keys = [_key(tenant, upload.id), _key(tenant, upload.id, "parts")]
        result, offset = self._script["append"](keys=keys, args=[begin, length, name, _EXPIRES_SECONDS])
        if result != "ok":
            self._artifacts.delete(f"{_folder(tenant, upload.id)}/{name}")
            raise _wrong_offset(upload.id, int(offset)) if result == "offset" else _unknown(upload.id)

    def _assemble(self, tenant: str, field: str, upload: Upload, target: Path) -> ReceivedFile:
        """Join the parts of an upload into the file `target`, verify its SHA-256, and return the file."""
        if upload.offset < upload.size:
            raise Conflict(
                f"Upload {upload.id} is incomplete: {upload.offset:,} of {upload.size:,} bytes received. "
                "Send the remaining parts.",
                offset=upload.offset,
            )
        self.check_space(upload.size)
        parts = self._redis.lrange(_key(tenant, upload.id, "parts"), 0, -1)
        digest = hashlib.sha256()
        with self._artifacts.errors("assembling the upload"):
            target.parent.mkdir()
            with open(target, "wb") as out:
                for part in parts:
                    path = self._artifacts.path(_folder(tenant, upload.id), part)
                    with self._artifacts.fs.open(path, "rb") as piece:
                        while block := piece.read(1 << 20):
                            digest.update(block)
                            out.write(block)
        if target.stat().st_size < upload.size:  # An equal request has deleted the upload in the meantime.
            raise _unknown(upload.id)
        if upload.sha256 is not None and digest.hexdigest() != upload.sha256:
            self._clean_up(tenant, upload.id)
            raise InvalidRequest(f"Upload {upload.id} does not match its SHA-256. Upload the file again.")
        return ReceivedFile(field, target.name, target, upload.size)


async def _receive(body: AsyncIterator[bytes], local: Path, length: int) -> int:
    """Write `body` to the file `local`, and return the number of received bytes. Stop if it exceeds `length`."""
    received = 0
    with storage_errors("receiving the part"), open(local, "wb") as handle:
        async for piece in body:
            received += len(piece)
            if received > length:
                break
            await run_in_threadpool(handle.write, piece)
        handle.flush()
        await run_in_threadpool(os.fsync, handle.fileno())
    return received


def _folder(tenant: str, upload_id: str) -> str:
    return f"{tenant}/parts/{upload_id}"


def _key(tenant: str, upload_id: str, *suffix: str) -> str:
    return key(tenant, "upload", upload_id, *suffix)


def _upload(upload_id: str, fields: Mapping[str, str | int]) -> Upload:
    own = {"id": upload_id, "part_bytes": PART_BYTES, "expires_seconds": _EXPIRES_SECONDS}
    return Upload.model_validate({**fields, **own, "sha256": fields["sha256"] or None})


def _range(header: str | None, upload: Upload) -> tuple[int, int]:
    """Return (first byte, length) of a Content-Range header: (5, 4) for "bytes 5-8/300". Raises InvalidRequest."""
    match = _RANGE.fullmatch(header or "")
    if match is None:
        raise InvalidRequest(f"Invalid Content-Range header '{(header or '')[:80]}'. Expected bytes FIRST-LAST/SIZE.")
    first, last, size = map(int, match.groups())
    if size != upload.size or not first <= last < size:
        raise InvalidRequest(
            f"Content-Range '{header}' does not fit the upload. "
            f"Expected bytes FIRST-LAST/{upload.size}, with FIRST ≤ LAST ≤ {upload.size - 1}."
        )
    if last - first + 1 > PART_BYTES:
        raise InvalidRequest(f"The part is larger than {PART_BYTES:,} bytes. Send smaller parts.")
    return first, last - first + 1


def _wrong_offset(upload_id: str, offset: int) -> Conflict:
    return Conflict(f"Wrong part of upload {upload_id}. Send the part that begins at byte {offset}.", offset=offset)


def _unknown(upload_id: str) -> NotFound:
    return NotFound(f"Upload '{upload_id}' does not exist or has expired. Create a new upload.")
