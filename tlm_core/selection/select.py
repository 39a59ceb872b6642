"""The `select` stage: from a task and an index of the corpus to the selection's files (paper section 3.1).

Files: `passages.parquet` (id, text, source, rank, score; by rank, then id), `provenance.parquet` (passage_id,
train_row, rank, score), `leaks.parquet` (passage_id, split, row, rule) and `selection.json`. The same task, corpus
version and parameters give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.corpus.leaks import LeakFilter
from tlm_core.errors import EmptySelection
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.keep import Keeper, random_order
from tlm_core.selection.retrieve import Progress, Retrieved, queries_of, retrieve, unwatched
from tlm_core.tasks.task import Task
from tlm_core.training.recipe import Selection

VERSION = 1
PASSAGES = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]
)
PROVENANCE = pa.schema(
    [("passage_id", pa.string()), ("train_row", pa.int64()), ("rank", pa.int32()), ("score", pa.float32())]
)
LEAKS = pa.schema([("passage_id", pa.string()), ("split", pa.string()), ("row", pa.int64()), ("rule", pa.string())])
_ROWS = 20_000
_LISTED = 100

Positions = NDArray[np.int64]
"""Places of passages in the order in which a selector named them."""


def train_texts(task: Task) -> Iterator[tuple[int, str]]:
    """(row, text) of the train split; the two texts of a pair are joined by a blank."""
    texts, pairs = task.texts("train"), task.text_pairs("train")
    joined = texts if pairs is None else [f"{first} {second}" for first, second in zip(texts, pairs, strict=True)]
    return zip(task.rows("train").tolist(), joined, strict=True)


def held_out_texts(task: Task) -> Iterator[tuple[str, int, str]]:
    """(split, row, text) of validation and test; both texts of a pair stand alone, as a passage may hold only one."""
    for split in ("validation", "test"):
        rows = task.rows(split).tolist()
        for texts in (task.texts(split), task.text_pairs(split)):
            yield from ((split, row, text) for row, text in zip(rows, texts or (), strict=texts is not None))


def select(
    task: Task,
    index: PassageIndex,
    params: Selection,
    folder: Path,
    *,
    seed: int,
    corpus: Mapping[str, str],
    progress: Progress = unwatched,
) -> dict[str, Any]:
    """Write the selection for `task` to `folder`; answers the content of its `selection.json`.

    Validation and test texts are never queries; they only drop the passages that hold them. corpus: its name and
    version, for the record. Raises EmptySelection when nothing is found or every find is a leak, and what the index
    raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leak_filter = LeakFilter(held_out_texts(task)) if params.leak_filter else None
    keeper = Keeper(index, leak_filter, params.max_passages)
    found: Retrieved | None = None
    if params.selector == "bm25" or (params.selector == "random" and params.max_passages is None):
        found = retrieve(queries_of(train_texts(task)), index, params.top_k, progress)
        _refuse_if_empty(found, corpus["name"])
    order: Iterable[str] = found.ids if found else ()
    if params.selector == "random":
        # The control: as many passages as the queries would have brought, drawn without a look at the task.
        count = params.max_passages or sum(len(batch) for batch in keeper.batches(order))
        found, keeper = None, Keeper(index, leak_filter, count)
        order = random_order(index, seed, count)
    asked = found.queries if found else 0
    positions, sources = _write_passages(
        folder / "passages.parquet", keeper, order, found, lambda: progress(asked, asked)
    )
    if params.selector != "none" and not len(positions):
        raise EmptySelection("every passage that was found holds validation or test texts; take another corpus")
    _write_provenance(folder / "provenance.parquet", found, positions)
    _write_leaks(folder / "leaks.parquet", keeper)
    facts = _facts(params, seed, {**corpus, "passages": index.count()}, found, keeper, sources)
    text = json.dumps(facts, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "selection.json").write_text(text + "\n", encoding="utf-8")
    return facts


def _refuse_if_empty(found: Retrieved, corpus: str) -> None:
    if not found.ids:
        raise EmptySelection(
            f"none of the {found.queries} train texts shares a word with corpus '{corpus}'; "
            "take a corpus in the language and of the field of the task"
        )


def _write_passages(
    path: Path, keeper: Keeper, order: Iterable[str], found: Retrieved | None, go_on: Callable[[], None]
) -> tuple[Positions, Counter[str]]:
    """Write what the keeper lets through; answers its positions in `order` and the count of each source.

    Passages that no query asked for have their place in the draw as rank, and no score. go_on: called between two
    batches; what it raises ends the work.
    """
    kept: list[Positions] = []
    sources: Counter[str] = Counter()
    with _Rows(path, PASSAGES) as rows:
        for batch in keeper.batches(order):
            go_on()
            positions = np.array([position for position, _ in batch], dtype=np.int64)
            first = sum(map(len, kept)) + 1
            rows.write(
                [passage.id for _, passage in batch],
                [passage.text for _, passage in batch],
                [passage.source for _, passage in batch],
                found.rank[positions] if found else np.arange(first, first + len(batch)),
                found.score[positions] if found else [None] * len(batch),
            )
            kept.append(positions)
            sources.update(passage.source for _, passage in batch)
    return np.concatenate([np.empty(0, np.int64), *kept]), sources


def _write_provenance(path: Path, found: Retrieved | None, positions: Positions) -> None:
    """Who asked for each passage that was kept."""
    with _Rows(path, PROVENANCE) as rows:
        if found:
            ids = pa.array(found.ids, pa.string())
            pairs = np.flatnonzero(np.isin(found.asked_passage, positions))
            for start in range(0, len(pairs), _ROWS):
                part = pairs[start : start + _ROWS]
                names = ids.take(pa.array(found.asked_passage[part]))
                rows.write(names, found.asked_row[part], found.asked_rank[part], found.asked_score[part])


def _write_leaks(path: Path, keeper: Keeper) -> None:
    with _Rows(path, LEAKS) as rows:
        if keeper.leaks:
            rows.write(*zip(*((found.passage_id, *found.leak) for found in keeper.leaks), strict=True))


class _Rows:
    """A Parquet file written column batch by column batch, in row groups of even size and without a time in it."""

    def __init__(self, path: Path, schema: Any) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[Any] = []

    def __enter__(self) -> _Rows:
        return self

    def write(self, *columns: Any) -> None:
        """Append rows; one sequence for each column of the schema, None for null."""
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._pending.append(pa.record_batch(arrays, schema=self._schema))
        if sum(batch.num_rows for batch in self._pending) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending))
            self._pending.clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def _facts(
    params: Selection,
    seed: int,
    corpus: Mapping[str, Any],
    found: Retrieved | None,
    keeper: Keeper,
    sources: Counter[str],
) -> dict[str, Any]:
    total = sum(sources.values())
    return {
        "version": VERSION,
        "selector": params.selector,
        "params": params.model_dump(mode="json"),
        "seed": seed,
        "corpus": dict(corpus),
        "passages": total,
        "asked": {
            "queries": found.queries,
            "without_hit": {"count": len(found.without_hit), "rows": found.without_hit[:_LISTED]},
            "candidates": len(found.ids),
            "cut_by_budget": len(found.ids) - total - keeper.dropped,
        }
        if found
        else None,
        "leaks": {
            "passages": keeper.dropped,
            "texts": len({(found.leak.split, found.leak.row) for found in keeper.leaks}),
        },
        "sources": [
            {"source": source, "passages": count, "share": round(count / total, 6)}
            for source, count in sorted(sources.items(), key=lambda item: (-item[1], item[0]))
        ],
    }
