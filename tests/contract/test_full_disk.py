"""A process on a file system of a few MB that is full."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.contract.gateway import upload
from tests.redis_server import RedisServer, free_port
from tests.support import ROOT

ROOM = 1 << 20
_MOUNT = f'mount -t tmpfs -o size={ROOM} none "$0" && exec "$@"'
_LIMIT = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({ROOM}, {ROOM}))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def with_little_room(folder: Path, *command: str) -> list[str]:
    """Return `command` with its own file system of ROOM bytes at `folder`.

    If the machine does not allow mounts, limit the size of each file to ROOM instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, str(folder)]
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode == 0:
        return [*mounted, *command]
    return [sys.executable, "-c", _LIMIT, *command]


def rows(size: int, seed: int) -> str:
    """Return a CSV file of about `size` bytes without duplicate rows."""
    source, lines, length = random.Random(seed), ["text,label"], 0
    while length < size:
        lines.append(f"{source.randbytes(400).hex()},{'pos' if len(lines) % 2 else 'neg'}")
        length += len(lines[-1])
    return "\n".join(lines) + "\n"


@contextmanager
def gateway(server: RedisServer, root: Path, small: str) -> Iterator[httpx.Client]:
    """Run a gateway process whose folder `small` has only ROOM bytes."""
    server.client().flushall()
    port = free_port()
    (root / "storage").mkdir()
    settings = {
        "PORT": str(port), "REDIS_URL": server.url, "REDIS_PASSWORD": server.password,
        "STORAGE": str(root / "storage"), "SCRATCH": str(root / "scratch"), "TOKEN_FILE": str(root / "token"),
        "RETRIEVER_URL": "http://127.0.0.1:1", "INTERNAL_TOKEN": "x",
    }  # fmt: skip
    environment = {**os.environ, **{f"TLM_API_{key}": value for key, value in settings.items()}}
    command = with_little_room(root / small, sys.executable, "-m", "services.api")
    with (
        open(root / "log", "wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        try:
            wait_for_answer(client, process, root / "log")
            client.headers["Authorization"] = f"Bearer {(root / 'token').read_text().strip()}"
            yield client
        finally:
            process.terminate()


def wait_for_answer(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.get("/healthz")
            return
        except httpx.ConnectError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("small", ["storage", "scratch"])
def test_upload_to_a_full_disk_is_rejected_and_stored_files_stay(
    redis_server: RedisServer, tmp_path: Path, small: str
) -> None:
    first, large, medium = rows(25_000, 0), rows(1_500_000, 1), rows(375_000, 2)
    with gateway(redis_server, tmp_path, small) as api:
        assert upload(api, name="first", train=first).status_code == 201
        for _ in range(2):
            refused = upload(api, name="large", train=large)
            assert (refused.status_code, refused.json()["code"]) == (507, "storage_full"), refused.text
            # Before the body arrives, the gateway measures the disk of the storage, but not that of the scratch folder.
            assert re.search("Free some|An upload of 1 MiB is refused", refused.json()["detail"])
        assert [dataset["name"] for dataset in api.get("/v1/datasets").json()["data"]] == ["first"]
        stored = api.get("/v1/datasets/first/files/train.csv")
        assert stored.content == first.encode()
        assert stored.headers["x-checksum-sha256"] == hashlib.sha256(first.encode()).hexdigest()
        assert upload(api, name="next", train=medium).status_code == 201, "A rejected upload leaves no files."


_WRITE = """
import sys
from pathlib import Path
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import StorageFull
storage, source = Path(sys.argv[1]), Path(sys.argv[2])
store = ArtifactStore(str(storage), storage / "cache")
small = store.write("a", source / "small", artifact="art_1", stage="joint")
try:
    store.write("b", source / "large", artifact="art_2", stage="joint")
except StorageFull as error:
    print(error)
store.verify(small)
print([path.name for path in (storage / "b").rglob("*")])
store.write("c", source / "medium", artifact="art_3", stage="joint")
print((source / "large" / "weights").stat().st_size)
"""


def test_artifact_too_large_for_the_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    # On another file system, so that the files are copied into the storage instead of renamed.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as source:
        for name, size in (("small", 1 << 18), ("large", 6 << 18), ("medium", 2 << 18)):
            (Path(source) / name).mkdir()
            (Path(source) / name / "weights").write_bytes(bytes(size))
        command = with_little_room(tmp_path / "s", sys.executable, "-c", _WRITE, str(tmp_path / "s"), source)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    message, partial_files, size = done.stdout.splitlines()
    assert "writing b: no space left on the storage" in message
    assert (partial_files, size) == ("[]", str(6 << 18)), "Only the copy is deleted."
