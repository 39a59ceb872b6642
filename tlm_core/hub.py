"""The Hugging Face hub: download models, check datasets, and translate the errors of the hub's libraries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tlm_core.artifacts.faults import storage_error, storage_fault
from tlm_core.errors import InvalidRequest, NotFound, TLMError, Unavailable
from tlm_core.names import HUB, MODEL

# Patterns for the files of all tokenizers that stock classes load.
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")

_CARDS = ("README.md", ".huggingface.yaml")
# A path with a scheme, a chain of file systems, an absolute path, or a path with `..`.
_OUTSIDE = re.compile(r"^/|^[^/]*:|::|://|(^|/)\.\.(/|$)")


def model_folder(source: str, *patterns: str) -> Path:
    """Return the local folder with a model's files. source: a local path, or `hub:OWNER/NAME[@REVISION]`.

    For a model of the hub, download the files that match `patterns`. If the hub does not answer, use an earlier
    download. Raises NotFound for an invalid name, and the errors of `hub_errors`.
    """
    if not source.startswith(HUB):
        return Path(source)
    if not re.fullmatch(MODEL, source):
        raise NotFound(f"Invalid hub model '{source}'. Expected hub:OWNER/NAME[@REVISION].")
    from huggingface_hub import snapshot_download

    path, _, revision = source.removeprefix(HUB).partition("@")
    with hub_errors(f"the model '{source}'", instead="set the path of a local folder"):
        folder = Path(snapshot_download(path, revision=revision or None, allow_patterns=list(patterns)))
    with suppress(OSError):  # The cache may be read-only.
        os.utime(folder.parents[1])  # marks all revisions of the model as used
    return folder


def refuse_folder(path: str) -> None:
    """Raise InvalidRequest if the hub id `path` is also a local path, because the libraries would read that path."""
    if Path(path).exists():
        raise InvalidRequest(
            f"Invalid hub id: '{path}' is also a local folder, which the Hugging Face libraries would read. To read "
            "from the hub, start this program in another directory. To use the folder, pass its absolute path or "
            "upload its files."
        )


def refuse_outside_files(path: str, revision: str | None = None) -> None:
    """Raise InvalidRequest if the card of a dataset names data files outside the dataset.

    The library `datasets` would read these files from this machine or its network. path: OWNER/NAME, or the absolute
    path of a local folder. Raises the errors of `huggingface_hub`.
    """
    from huggingface_hub import DatasetCard

    for name in _CARDS:
        if (file := _card_file(path, name, revision)) is None:
            continue
        text = file.read_text(encoding="utf-8")
        card = DatasetCard(text if name.endswith(".md") else f"---\n{text}\n---\n")
        for config in _listed(card.data.get("configs")):
            for data_file in _data_files(config) if isinstance(config, dict) else ():
                if isinstance(data_file, str) and _OUTSIDE.search(data_file):
                    raise InvalidRequest(
                        f"{name} of the hub dataset {path} names the data file '{data_file[:200]}', which is not a "
                        "path inside the dataset. Choose another dataset, or upload the files."
                    )


def _card_file(path: str, name: str, revision: str | None) -> Path | None:
    """Return the local path of a file of a dataset, or None if it is missing. Raises errors of `huggingface_hub`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(path).is_absolute():
        file = Path(path, name)
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(path, name, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError:  # The hub does not answer. It could answer again when the dataset is loaded.
        raise
    except EntryNotFoundError:
        return None


def _data_files(config: Mapping[str, object]) -> Iterator[object]:
    """Yield each data file in a configuration of a dataset card, and the folder `data_dir`. None: not set."""
    for entry in _listed(config.get("data_files")):
        yield from _listed(entry.get("path") if isinstance(entry, dict) else entry)
    yield config.get("data_dir")


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


@contextmanager
def hub_errors(what: str, instead: str = "upload its files") -> Iterator[None]:
    """Translate errors of `huggingface_hub` and `datasets` in the block into NotFound, Unavailable or InvalidRequest.

    Errors of the local folder for downloads become StorageFull or StorageUnavailable. The arguments are for the
    messages. what: the requested object, such as "the model 'x'". instead: what a user can do without the hub.
    """
    try:
        yield
    except TLMError:
        raise
    except Exception as error:
        if (fault := storage_fault(error)) is not None:
            raise storage_error(f"storing {what}", fault) from error
        # These libraries take seconds to import, and only requests to the hub need them.
        from datasets.exceptions import DatasetsError
        from huggingface_hub import errors as hub

        # Versions of huggingface_hub use different HTTP clients. Each exports the error class of its own client.
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        missing = (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.EntryNotFoundError, FileNotFoundError)
        # LocalEntryNotFoundError means that the hub did not answer.
        if isinstance(error, missing) and not isinstance(error, hub.LocalEntryNotFoundError):
            raise NotFound(f"Cannot find {what} ({reason}). Check its name, and that it is public.") from error
        if isinstance(error, (OSError, HTTPError)):
            raise Unavailable(f"Cannot fetch {what} now ({reason}). Try again later, or {instead}.") from error
        if isinstance(error, (ValueError, RuntimeError, DatasetsError)):  # RuntimeError: the dataset needs a script
            raise InvalidRequest(
                f"Cannot read {what} ({reason}). Check its name and configuration, or {instead}."
            ) from error
        raise
