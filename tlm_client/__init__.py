"""The Python client, the `tlm` command, the local stack and the demo."""

import sys

# httpx imports its command line with click, rich and pygments, which takes longer than httpx itself.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
