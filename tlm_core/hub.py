"""The Hugging Face hub: repositories of models, and what its library's failures mean here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tlm_core.errors import InvalidRequest, NotFound, Unavailable

HUB = "hub:"
# An owner, or what is theirs: no step of a path leads out of it.
NAME = r"[A-Za-z0-9][\w.-]*"
# A model of the hub as recipes name it; the oldest ones have no owner.
MODEL = rf"{HUB}({NAME}/)?{NAME}(@[^\s@:]+)?"
# Files of all kinds of tokenizers that stock classes load.
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")


def model_folder(source: str, *patterns: str) -> Path:
    """Folder of a model's files: of `hub:OWNER/NAME[@REVISION]` those that fit `patterns`, downloaded if need be.

    Any other source is a local path. Where the hub does not answer, what was downloaded before will do. Raises
    NotFound and Unavailable.
    """
    if not source.startswith(HUB):
        return Path(source)
    if not re.fullmatch(MODEL, source):
        raise NotFound(f"'{source}' is no model of the hub; write hub:OWNER/NAME, @REVISION may follow")
    from huggingface_hub import snapshot_download

    path, _, revision = source.removeprefix(HUB).partition("@")
    with hub_errors(f"the model '{source}'"):
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=list(patterns)))


def refuse_folder(path: str) -> None:
    """The libraries take a folder of that name for the repository. Raises InvalidRequest where there is one."""
    if Path(path).exists():
        raise InvalidRequest(f"'{path}' is also a folder here, so no hub id; give the folder, or start elsewhere")


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Raise what `huggingface_hub` and `datasets` raise as NotFound, Unavailable or InvalidRequest.

    what: that was asked for, in words.
    """
    try:
        yield
    except Exception as error:
        # Here, because these libraries take seconds to import, and only what asks the hub needs them.
        from datasets.exceptions import DatasetsError
        from huggingface_hub import errors as hub

        # Of whichever HTTP client the library uses: it has changed that before.
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        missing = (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.EntryNotFoundError, FileNotFoundError)
        # The library says that an entry was not found locally where the hub gave no answer.
        if isinstance(error, missing) and not isinstance(error, hub.LocalEntryNotFoundError):
            raise NotFound(f"{what} was not found ({said}); check its name, and that it is public") from error
        if isinstance(error, (OSError, HTTPError)):
            raise Unavailable(f"{what} cannot be fetched now ({said}); try again later, or give its files") from error
        if isinstance(error, (ValueError, RuntimeError, DatasetsError)):  # RuntimeError: it needs code of its own
            raise InvalidRequest(f"{what} cannot be read as it is ({said}); check it, or give its files") from error
        raise
