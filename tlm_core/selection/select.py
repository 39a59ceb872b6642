"""The `select` stage: from a task and an index of the corpus to the selection's files (paper section 3.1).

Files: `passages.parquet` (id, text, source, rank, score; by rank, then id), `provenance.parquet` (passage_id,
train_row, rank, score), `leaks.parquet` (passage_id, split, row, rule) and `selection.json`. The same task, corpus
version and parameters give the same bytes, however often the work was broken off in between.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlm_core.artifacts import storage_errors
from tlm_core.corpus.leaks import LeakFilter
from tlm_core.corpus.passages import word_count
from tlm_core.errors import EmptySelection, InvalidRecipe
from tlm_core.selection.analysis import analysis_of
from tlm_core.selection.draw import best_first, over_texts, shuffled
from tlm_core.selection.files import PASSAGES, Rows, write_leaks, write_provenance
from tlm_core.selection.given import given_candidates
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.keep import Candidate, Keeper, Ranked, fetched
from tlm_core.selection.likeness import classifier, importance
from tlm_core.selection.queries import held_out_texts, task_queries, train_texts
from tlm_core.selection.retrieve import Progress, Retrieved, retrieve, unwatched
from tlm_core.selection.shares import QueryCap, in_turns, label_facts, rank_counts
from tlm_core.tasks.task import Task
from tlm_core.training.recipe import Selection

VERSION = 2
_LISTED = 100
_SHORT = 25  # words of a short passage: with a budget in words, how many passages it takes at most

Candidates = Iterator[list[Candidate]]


@dataclass(frozen=True)
class Corpus:
    """What is selected from. name, version: for the record."""

    name: str
    version: str
    index: PassageIndex


@dataclass
class _Kept:
    """What has been written: places among the candidates, and counts."""

    places: list[NDArray[np.int64]] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    words: int = 0

    @property
    def all_places(self) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, np.int64), *self.places])


class _Told:
    """Passes progress on, and says the last of it again while what follows has nothing of its own to count."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = (0, 0, "passages")

    def __call__(self, done: int, total: int, unit: str) -> None:
        self._last = (done, total, unit)
        self.again()

    def again(self) -> None:
        self._progress(*self._last)


@storage_errors("writing the selection")
def select(
    task: Task,
    source: Corpus | Path | None,
    params: Selection,
    folder: Path,
    *,
    seed: int,
    parts: Path,
    progress: Progress = unwatched,
) -> dict[str, Any]:
    """Write the selection for `task` to `folder`; answers the content of its `selection.json`.

    Validation and test texts are never queries; they only drop the passages that hold them. source: the corpus, or
    the file that `given.write_given` made for the selector `given`, or nothing for `none`. parts: a folder for work
    under way, which a later call with the same arguments goes on from; the caller removes it. Raises EmptySelection
    when nothing is found or nothing of it may stay, InvalidRecipe, StorageFull, StorageUnavailable, and what the index
    raises.
    """
    _check_fit(task, params)
    folder.mkdir(parents=True, exist_ok=True)
    told = _Told(progress)
    keeper = Keeper(
        LeakFilter(held_out_texts(task)) if params.leak_filter else None, params.max_passages, params.max_tokens
    )
    found: Retrieved | None = None
    stay: Candidates = iter(())
    if isinstance(source, Path):
        stay = keeper.batches(given_candidates(source, params.top_k))
    elif source is not None and params.selector == "bm25":
        found = _asked(task, source, params, parts, told)
        stay = _of_queries(task, source, params, found, keeper)
    elif source is not None and params.selector != "none":
        stay = _of_draw(_Draw(task, source, params, seed, parts, told), keeper)
    kept = _write_passages(folder / "passages.parquet", stay, told.again)
    if params.selector != "none" and not kept.places:
        raise EmptySelection(_why_empty(keeper, params))
    write_provenance(folder / "provenance.parquet", found, kept.all_places)
    write_leaks(folder / "leaks.parquet", keeper.leaks)
    facts = _facts(params, seed, source, keeper, kept) | _facts_of_queries(task, found, keeper, kept)
    text = json.dumps(facts, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "selection.json").write_text(text + "\n", encoding="utf-8")
    return facts


def _check_fit(task: Task, params: Selection) -> None:
    """Raises InvalidRecipe for params that mean nothing to this task, before anything is asked of an index."""
    if params.per_label_balance and not task.type.has_classes:
        raise InvalidRecipe(
            f"selection.per_label_balance needs a task with classes, and task '{task.name}' is a regression task. "
            "Remove the option."
        )


def _asked(task: Task, corpus: Corpus, params: Selection, parts: Path, progress: Progress) -> Retrieved:
    found = retrieve(task_queries(task, params), corpus.index, params.top_k, parts / "hits", progress)
    if not len(found.ids):
        raise EmptySelection(
            f"none of the {found.rows} train texts shares a word with corpus '{corpus.name}'; "
            "take a corpus in the language and of the field of the task"
        )
    return found


def _of_queries(task: Task, corpus: Corpus, params: Selection, found: Retrieved, keeper: Keeper) -> Candidates:
    """What the queries found and may stay, by best rank."""
    if params.per_query_cap:
        keeper.admits = QueryCap(found, params.per_query_cap)
    if not params.per_label_balance:
        return keeper.batches(fetched(corpus.index, found.ranked(), params.max_passages))
    in_order = fetched(corpus.index, found.ranked(in_turns(found, task)), params.max_passages)
    places = [candidate.place for batch in keeper.batches(in_order) for candidate in batch]
    return fetched(corpus.index, found.ranked(np.array(sorted(places), np.int64)), None)


@dataclass(frozen=True)
class _Draw:
    """All that a selector which looks at every passage needs."""

    task: Task
    corpus: Corpus
    params: Selection
    seed: int
    parts: Path
    progress: Progress

    @property
    def index(self) -> PassageIndex:
        return self.corpus.index

    def best_first(self, count: int) -> Iterator[Ranked]:
        """All passages, best first, of which some `count` will be taken."""
        if self.params.selector in ("random", "whole"):
            return best_first(shuffled(self.index, self.seed), count, scored=False)
        analysis = analysis_of(self.task.language)
        if self.params.selector == "dsir":
            texts = (text for _, text in train_texts(self.task))
            worth = importance(texts, self.index, analysis, self.seed, self.progress)
        else:
            worth = classifier(
                task_queries(self.task, self.params), self.index, analysis, self.seed,
                folder=self.parts / "examples", corpus=self.corpus.name, progress=self.progress,
            )  # fmt: skip
        return best_first(over_texts(self.index, worth, self.progress), count, scored=True)


def _of_draw(draw: _Draw, keeper: Keeper) -> Candidates:
    """What is drawn and may stay; without a budget as many as the queries would bring, of `whole` everything."""
    params, total = draw.params, draw.index.count()
    if params.selector != "whole" and not params.has_budget:
        found = _asked(draw.task, draw.corpus, params, draw.parts, draw.progress)
        plain = fetched(draw.index, found.ranked(), None)
        trial = Keeper(keeper.filter)
        keeper.budget = sum(len(batch) for batch in trial.batches(plain))
        if not keeper.budget:
            raise EmptySelection(_why_empty(trial, params))
    count = total if keeper.budget is None else min(keeper.budget, total)
    if params.max_tokens is not None:
        count = min(count, params.max_tokens // _SHORT + 1)
    return keeper.batches(fetched(draw.index, draw.best_first(count), count))


def _why_empty(keeper: Keeper, params: Selection) -> str:
    if keeper.dropped:
        return "every passage that was found holds validation or test texts; take another corpus"
    if params.selector == "given":
        return f"the given selection has no passage of rank {params.top_k} or better; set selection.top_k higher"
    return "the first passage alone is longer than selection.max_tokens; set it higher"


def _write_passages(path: Path, stay: Iterable[list[Candidate]], go_on: Callable[[], None]) -> _Kept:
    """Write what stays. go_on: called between two batches; what it raises ends the work."""
    kept = _Kept()
    with Rows(path, PASSAGES) as rows:
        for batch in stay:
            go_on()
            if not batch:
                continue
            passages = [candidate.passage for candidate in batch]
            rows.write(
                [passage.id for passage in passages],
                [passage.text for passage in passages],
                [passage.source for passage in passages],
                [candidate.rank for candidate in batch],
                [candidate.score for candidate in batch],
            )
            kept.places.append(np.array([candidate.place for candidate in batch], dtype=np.int64))
            kept.sources.update(passage.source for passage in passages)
            kept.words += sum(word_count(passage.text) for passage in passages)
    return kept


def _facts(params: Selection, seed: int, source: Corpus | Path | None, keeper: Keeper, kept: _Kept) -> dict[str, Any]:
    total = kept.sources.total()
    corpus = (
        {"corpus": {"name": source.name, "version": source.version, "passages": source.index.count()}}
        if isinstance(source, Corpus)
        else {}
    )
    return {
        **corpus,
        "version": VERSION,
        "selector": params.selector,
        "params": params.model_dump(mode="json"),
        "seed": seed,
        "passages": total,
        "words": kept.words,
        "leaks": {
            "passages": keeper.dropped,
            "texts": len({(found.leak.split, found.leak.row) for found in keeper.leaks}),
        },
        **_source_facts(kept.sources),
    }


def _source_facts(counts: Counter[str]) -> dict[str, Any]:
    """The sources with the most passages, and how many others there are: a corpus may have one for each document."""
    total = counts.total()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ranked[_LISTED:]
    return {
        "sources": [
            {"source": name, "passages": count, "share": round(count / total, 6)} for name, count in ranked[:_LISTED]
        ],
        "other_sources": {"sources": len(rest), "passages": sum(count for _, count in rest)},
    }


def _facts_of_queries(task: Task, found: Retrieved | None, keeper: Keeper, kept: _Kept) -> dict[str, Any]:
    """Null for a selector whose passages nobody asked for; `labels` is null in regression too."""
    if found is None:
        return {"asked": None, "ranks": None, "labels": None}
    places = kept.all_places
    asked = {
        "queries": found.rows,
        "without_hit": {"count": len(found.without_hit), "rows": found.without_hit[:_LISTED]},
        "candidates": len(found.ids),
        "cut_by_query_cap": keeper.declined,
        "cut_by_budget": len(found.ids) - len(places) - keeper.dropped - keeper.declined,
    }
    return {"asked": asked, "ranks": rank_counts(found.rank[places]), "labels": label_facts(found, task, places)}
