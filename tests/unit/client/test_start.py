"""What `tlm` imports when it starts: each module costs time in every call."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

HELP = {"annotated_doc", "shellingham", "typer"}
# httpx imports zstandard where it is installed.
HTTP = {"anyio", "certifi", "h11", "httpcore", "httpx", "httpx_sse", "idna", "tenacity", "zstandard"}
PYDANTIC = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
PROGRAM = """
import sys
from tlm_client.__main__ import main
before = set(sys.modules)
sys.argv = ["tlm", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module and name not in before}
known = sys.stdlib_module_names | {"tlm_client", "tlm_core"}
print(*(name for name in sorted(loaded - known) if not name.startswith("_")), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], HELP),
        (["--help"], HELP),
        (["--url", "http://127.0.0.1:1", "jobs"], HELP | HTTP | PYDANTIC | {"rich"}),
    ],
)
def test_start_imports_only_what_the_command_needs(arguments: list[str], expected: set[str]) -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert set(result.stderr.splitlines()[-1].split()) <= expected
