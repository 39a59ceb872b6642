"""Generate the synchronous client from the asyncio client.

Run it with `python -m tools.generate_client` or `make client`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "tlm_client" / "async_client.py"
TARGET = ROOT / "tlm_client" / "client.py"
DOCSTRING = '"""The API client. `make client` generates this file from async_client.py. Do not edit it."""'
REPLACEMENTS = {
    "AsyncTLMClient": "TLMClient", "AsyncClient": "Client", "AsyncBaseTransport": "BaseTransport",
    "AsyncRetrying": "Retrying", "asyncio": "time", "aclose": "close", "aread": "read", "aiter_bytes": "iter_bytes",
    "aiter_sse": "iter_sse",
}  # fmt: skip


def generate() -> str:
    """Return the source of the synchronous client."""
    with tempfile.TemporaryDirectory(prefix="tlm-client-") as folder:
        source, target = Path(folder) / "async" / SOURCE.name, Path(folder) / "sync" / SOURCE.name
        source.parent.mkdir()
        _, code = SOURCE.read_text(encoding="utf-8").split("\n", 1)
        source.write_text(f"{DOCSTRING}\n{code}", encoding="utf-8")
        rule = unasync.Rule("/async/", "/sync/", additional_replacements=REPLACEMENTS)
        unasync.unasync_files([str(source)], [rule])
        code = target.read_text(encoding="utf-8")
    for arguments in (("check", "--fix", "--quiet"), ("format", "--quiet")):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET), "-"]
        code = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, check=True).stdout
    return code


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
