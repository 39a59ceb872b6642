"""Generate the synchronous client from the asyncio client.

Run it with `python -m tools.generate_client` or `make client`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

from tools import ROOT

CLIENT = ROOT / "tlm_client"
GENERATED = {"async_client.py": "client.py", "async_connection.py": "connection.py"}  # source → generated file
REPLACEMENTS = {
    "AsyncTLMClient": "TLMClient", "AsyncConnection": "Connection", "async_connection": "connection",
    "AsyncClient": "Client", "AsyncBaseTransport": "BaseTransport", "AsyncRetrying": "Retrying", "asyncio": "time",
    "aclose": "close", "aread": "read", "aiter_bytes": "iter_bytes", "aiter_sse": "iter_sse",
}  # fmt: skip


def generate(name: str) -> str:
    """Return the code of the synchronous version of an asyncio file. name: such as "async_client.py"."""
    with tempfile.TemporaryDirectory(prefix="tlm-client-") as folder:
        source, target = Path(folder) / "async" / name, Path(folder) / "sync" / name
        source.parent.mkdir()
        _, code = (CLIENT / name).read_text(encoding="utf-8").split("\n", 1)
        docstring = f'"""The API client. `make client` generates this file from {name}. Do not edit it."""'
        source.write_text(f"{docstring}\n{code}", encoding="utf-8")
        rule = unasync.Rule("/async/", "/sync/", additional_replacements=REPLACEMENTS)
        unasync.unasync_files([str(source)], [rule])
        code = target.read_text(encoding="utf-8")
    for arguments in (("check", "--fix", "--quiet"), ("format", "--quiet")):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(CLIENT / GENERATED[name]), "-"]
        code = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, check=True).stdout
    return code


if __name__ == "__main__":
    for name, target in GENERATED.items():
        (CLIENT / target).write_text(generate(name), encoding="utf-8")
