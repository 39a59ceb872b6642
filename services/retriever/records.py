"""What the storage remembers of loads: where a corpus version lies, how far its load came, what was refused and why."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from services.retriever.bulk import Refused, Taken
from services.retriever.indexes import CorpusKey, Filling
from tlm_core.artifacts import ArtifactStore
from tlm_core.corpus.passages import Passage
from tlm_core.errors import NotFound


class LoadRecords:
    """Small files beside a tenant's corpora: `indexes/NAME/VERSION.json`, `.cursor.json` and `.refused.jsonl`.

    Raises NotFound, StorageFull, StorageUnavailable.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def note(self, key: CorpusKey, folder: str, language: str) -> None:
        """Where the passages of `key` lie, so that a lost index is built again without anyone's asking."""
        self._write(self._path(key, ".json"), json.dumps({"folder": folder, "language": language}))

    def noted(self, key: CorpusKey) -> tuple[str, str]:
        """Folder and language of `key`. Raises NotFound if it was never asked for."""
        body = self._read(self._path(key, ".json"))
        if body is None:
            raise NotFound(f"{key} is not known here; load it first")
        note = json.loads(body)
        return note["folder"], note["language"]

    def keep(self, key: CorpusKey, index: Filling) -> None:
        """Note how far `index` is: whoever loads it next goes on from there.

        The refused passages are written first: those behind the cursor are refused once more, those before it are not.
        """
        refused = index.refused
        lines = (json.dumps(self._letter(entry), ensure_ascii=False) + "\n" for entry in refused)
        if refused:
            self._write(self.refused_path(key), "".join(lines))
        cursor = {"index": index.identity, "taken": index.taken, "checksum": index.checksum, "refused": len(refused)}
        self._write(self._path(key, ".cursor.json"), json.dumps(cursor))

    def taken(self, key: CorpusKey, identity: str) -> Taken:
        """How far the load of the index `identity` came; nothing if nothing is known of it.

        An index that was deleted and made anew has another identity, so its cursor is never taken for this one's.
        """
        cursor = self._cursor(key)
        if cursor is None or cursor["index"] != identity or not identity:
            return Taken()
        refused = tuple(entry for entry in self._letters(key) if entry.number < cursor["taken"])
        if len(refused) != cursor["refused"]:
            return Taken()
        return Taken(cursor["taken"], cursor["checksum"], refused)

    def letters(self, key: CorpusKey) -> list[Refused]:
        """The passages of `key` that the index will never take, in their order, with the reasons."""
        cursor = self._cursor(key)
        taken = cursor["taken"] if cursor else 0
        return [entry for entry in self._letters(key) if entry.number < taken]

    def refused(self, key: CorpusKey) -> int:
        """How many they are."""
        cursor = self._cursor(key)
        return int(cursor["refused"]) if cursor else 0

    def forget(self, key: CorpusKey) -> None:
        """Remove all notes of `key`; none is no error."""
        with self._store.errors(f"forgetting {key}"):
            for ending in (".json", ".cursor.json", ".refused.jsonl"):
                if self._store.fs.exists(self._path(key, ending)):
                    self._store.fs.rm_file(self._path(key, ending))

    def refused_path(self, key: CorpusKey) -> str:
        """Where the refused passages stand, one JSON object a line: number, id, text, source, reason."""
        return self._path(key, ".refused.jsonl")

    @staticmethod
    def _letter(entry: Refused) -> dict[str, object]:
        return {"number": entry.number, **entry.passage._asdict(), "reason": entry.reason}

    def _letters(self, key: CorpusKey) -> list[Refused]:
        found = []
        for line in (self._read(self.refused_path(key)) or b"").splitlines():
            letter = json.loads(line)
            passage = Passage(letter["id"], letter["text"], letter["source"])
            found.append(Refused(letter["number"], passage, letter["reason"]))
        return found

    def _cursor(self, key: CorpusKey) -> dict[str, Any] | None:
        body = self._read(self._path(key, ".cursor.json"))
        return dict(json.loads(body)) if body else None

    def _path(self, key: CorpusKey, ending: str) -> str:
        tenant, name, version = (quote(part, safe="") for part in key)
        return self._store.path(tenant, "indexes", name, f"{version}{ending}")

    def _read(self, path: str) -> bytes | None:
        try:
            with self._store.errors(f"reading {path}"):
                return bytes(self._store.fs.cat_file(path))
        except NotFound:
            return None

    def _write(self, path: str, text: str) -> None:
        with self._store.errors(f"writing {path}", writes=True):
            self._store.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            if not self._store.local:  # an object is there whole or not at all
                self._store.fs.pipe_file(path, text.encode())
                return
            partial = f"{path}.{uuid.uuid4().hex}.part"
            Path(partial).write_bytes(text.encode())
            os.replace(partial, path)
