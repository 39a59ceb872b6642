"""Which addresses the gateway fetches corpora from: those that its operator allows, and no other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tlm_core.corpus.remote import is_address
from tlm_core.errors import InvalidRequest
from tlm_core.hub import HUB, NAME, refuse_folder

# What leads out of an allowed folder: steps upwards, and fsspec's chains of file systems (`zip://…::file://…`).
_WAY_OUT = re.compile(r"::|\\|(^|/)(\.|%2e){2}(/|$)|[\x00-\x1f]", re.IGNORECASE)

# The hub's library would read a folder of this machine in place of OWNER/NAME.
_REPOSITORY = re.compile(rf"{HUB}(?P<path>{NAME}/{NAME})(:[^\s:]*){{0,2}}")


def check_sources(sources: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises InvalidRequest for the first source that is no address, or lies under none that is allowed."""
    for source in sources:
        if not (is_address(source) or source.startswith(HUB)):
            raise InvalidRequest(
                f"'{source[:200]}' is no address; give one such as s3://bucket/folder, or upload files"
            )
        if source.startswith(HUB):
            found = _REPOSITORY.fullmatch(source)
            if not found:
                raise InvalidRequest(
                    f"'{source[:200]}' is no data set of the hub; write hub:OWNER/NAME[:config][:split]"
                )
            refuse_folder(found["path"])
        if _WAY_OUT.search(source) or not any(_lies_under(source, prefix) for prefix in allowed):
            open_to = ", ".join(allowed) or "none"
            raise InvalidRequest(
                f"this service does not fetch '{source[:200]}'; what its operator allows (TLM_API_SOURCES): {open_to}; "
                "or upload the files"
            )


def _lies_under(source: str, prefix: str) -> bool:
    """A prefix that ends as a folder or a scheme does (`s3://`, `hub:`) holds all that begins so; else whole steps."""
    return source == prefix or source.startswith(prefix if prefix.endswith(("/", ":")) else f"{prefix}/")
