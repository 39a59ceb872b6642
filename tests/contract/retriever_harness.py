"""A storage with a corpus and a task, and retrievers that use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi.testclient import TestClient

from services.common.retriever_client import IndexLoad, RetrieverClient, SelectionRequest, SelectionRun
from services.retriever.app import RetrieverSettings, assemble
from tests.contract.selection_indexes import new_key
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.selection.given import GIVEN, write_given
from tlm_core.tasks.task import Task, task_schema

TOKEN = "secret of the stack"
PASSAGES = [(f"p{n:03d}", f"passage {n} of word{n % 10} and word{n % 7}", f"s{n % 2}") for n in range(200)]


class RetrieverHarness:
    """A storage with a corpus and a task, and retrievers that use it."""

    def __init__(self, folder: Path, kind: str, url: str) -> None:
        self.folder = folder
        self.key = new_key()
        self.settings = RetrieverSettings(
            storage=str(folder / "storage"), scratch=folder / "scratch", internal_token=TOKEN, index=kind,
            opensearch_url=url, retry_seconds=20,
        )  # type: ignore[arg-type]  # fmt: skip
        self.store = ArtifactStore(self.settings.storage, folder / "cache")
        self.write_corpus(PASSAGES)
        self.task = self.write_task(["word1 word2", "word3", "absent"])

    def write_corpus(self, rows: list[tuple[str, str, str]], name: str = "passages-00000.parquet") -> None:
        path = self.folder / "storage" / "t" / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        pq.write_table(pa.table(dict(zip(("id", "text", "source"), map(list, columns), strict=True))), path)

    def write_task(self, texts: list[str], given: str | None = None) -> ManifestRef:
        schema = task_schema(False)
        rows = pa.table([range(1, len(texts) + 1), texts, [0] * len(texts)], schema=schema)
        task = Task("t", ("a", "b"), "macro_f1", False, "en", {"train": rows, "validation": rows[:0], "test": rows[:0]})
        task.write(self.folder / "task")
        if given is not None:
            (self.folder / "given.csv").write_text(given)
            write_given(self.folder / "given.csv", self.folder / "task" / GIVEN)
        return self.store.write("t/task", self.folder / "task", artifact="art_task", stage="validate")

    @contextmanager
    def retriever(self) -> Iterator[RetrieverClient]:
        """Run the service and yield its client."""
        with TestClient(assemble(self.settings), headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            yield RetrieverClient(http)

    def load(self, api: RetrieverClient, folder: str = "t/corpus", language: str = "en") -> IndexLoad:
        api.put_corpus(*self.key, folder=folder, language=language)
        return wait_while(lambda: api.corpus(*self.key), "loading")

    def request(self, prefix: str = "t/artifacts/a/1", **over: Any) -> SelectionRequest:
        tenant, corpus, version = self.key
        values = {"corpus": corpus, "version": version, "params": {"top_k": 5}, "task": self.task, "prefix": prefix}
        return SelectionRequest(tenant=tenant, **(values | over))

    def select(self, api: RetrieverClient, artifact: str = "art_1", **over: Any) -> SelectionRun:
        api.put_selection(artifact, self.request(**over))
        return wait_while(lambda: api.get_selection(artifact), "running")


def wait_while(read: Callable[[], Any], while_in: str) -> Any:
    """Poll until the state differs from `while_in`, and return the last answer."""
    deadline = time.monotonic() + 120
    while (seen := read()).state == while_in:
        assert time.monotonic() < deadline, f"still {seen}"
        time.sleep(0.02)
    return seen
