"""The inputs and the result of a selector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tlm_core.errors import EmptySelection
from tlm_core.selection.candidates import Candidate, CandidateFilter
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.queries import task_queries
from tlm_core.selection.retrieve import Progress, Retrieved, retrieve
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task


@dataclass(frozen=True)
class Corpus:
    """A corpus version with its index. The report states `name` and `version`."""

    name: str
    version: str
    index: PassageIndex


@dataclass(frozen=True)
class SelectionInputs:
    """All inputs of a selector.

    source: the corpus, the file that `write_given` wrote, or None, as `Selector.source` requires.
    scratch: folder for partial results. A later call with equal inputs continues from them.
    """

    task: Task
    source: Corpus | Path | None
    params: Selection
    seed: int
    scratch: Path
    progress: Progress

    @property
    def corpus(self) -> Corpus:
        assert isinstance(self.source, Corpus), f"The selector '{self.params.selector}' has no corpus."
        return self.source

    @property
    def index(self) -> PassageIndex:
        return self.corpus.index

    def retrieve(self) -> Retrieved:
        """Return the hits of the train texts in the corpus. Raises EmptySelection if no query has a hit."""
        queries = task_queries(self.task, self.params)
        retrieved = retrieve(queries, self.index, self.params.top_k, self.scratch / "hits", self.progress)
        if not len(retrieved.ids):
            raise EmptySelection(
                f"No train text shares a word with corpus '{self.corpus.name}' ({retrieved.train_rows} train texts). "
                "Use a corpus in the language and field of the task."
            )
        return retrieved

    def check_any(self, accepted: int, accept: CandidateFilter) -> None:
        """Raise EmptySelection with the reason if `accepted`, the number of selected passages, is zero.

        With the selector `none`, zero is valid. accept: the filter that dropped the passages.
        """
        source = self.params.definition.source
        if accepted or source == "nothing":
            return
        if accept.too_long:
            raise EmptySelection(
                "The first passage is longer than selection.max_tokens allows. Increase selection.max_tokens."
            )
        if accept.leaking_passages:
            raise EmptySelection(
                "Every selected passage repeats a validation or test text. Use another corpus or uploaded selection, "
                "or disable selection.leak_filter."
            )
        if source == "dataset":
            raise EmptySelection(
                f"The uploaded selection has no passage of rank {self.params.top_k} or better. "
                "Increase selection.top_k."
            )
        raise EmptySelection(f"The corpus '{self.corpus.name}' contains no passage. Use another corpus.")


class Selected(NamedTuple):
    """Batches of accepted passages, best first. retrieved: the query hits for the provenance; None: no provenance."""

    batches: Iterator[list[Candidate]]
    retrieved: Retrieved | None = None


# Ranks passages, and returns those that the filter accepts. The filter drops leaks and applies the budget.
SelectFunction = Callable[[SelectionInputs, CandidateFilter], Selected]
