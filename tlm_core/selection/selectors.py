"""The table of selectors, and the `selection` part of a recipe.

To add a selector, write its `interface.SelectFunction`, and add an entry to `SELECTORS`. All other code reads the
table: recipe validation, plans, estimates, model cards and the retriever. The table contains the names of functions, so
that the gateway can import the table without pyarrow and scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict


@dataclass(frozen=True)
class Selector:
    """A method that selects passages.

    function: `module:name` of the SelectFunction, which is imported when a selection runs.
    summary: description of the selected passages, for the API and the docs. origin: where the passages come
    from; the model card writes this text after "200 passages, ". source: where the selector reads passages.
    size: what determines the number of passages. `queries`: the query hits and the budget. `budget`: the budget or,
    without a budget, the number of query hits. `source`: the number of passages in the source.
    options: the fields of `Selection` that this selector accepts, and that some other selectors refuse.
    """

    function: str
    summary: str
    origin: str
    source: Literal["corpus", "dataset", "nothing"] = "corpus"
    size: Literal["queries", "budget", "source"] = "budget"
    options: tuple[str, ...] = ()


_QUERY_OPTIONS = ("query", "unique_terms")

SELECTORS: dict[str, Selector] = {
    "bm25": Selector(
        "tlm_core.selection.bm25:bm25",
        summary="the union of the BM25 hits of each train text, best rank first",
        origin="retrieved by queries from the train texts",
        size="queries",
        options=(*_QUERY_OPTIONS, "per_query_cap", "per_label_balance"),
    ),
    "random": Selector(
        "tlm_core.selection.sampling:random_sample",
        summary="a random sample of the corpus that ignores the task: a control",
        origin="drawn at random from the corpus",
        options=_QUERY_OPTIONS,
    ),
    "whole": Selector(
        "tlm_core.selection.sampling:whole_corpus",
        summary="every passage of the corpus, in random order: a control",
        origin="from the whole corpus, whatever the task",
        size="source",
    ),
    "dsir": Selector(
        "tlm_core.selection.likeness:dsir",
        summary="a random sample that favors passages whose words are more frequent in the task than in the corpus",
        origin="sampled from the corpus by their likeness to the train texts",
        options=_QUERY_OPTIONS,
    ),
    "classifier": Selector(
        "tlm_core.selection.likeness:classifier",
        summary="the passages that a linear classifier rates most like the query hits",
        origin="the passages of the corpus most like the hits of queries from the train texts",
        options=_QUERY_OPTIONS,
    ),
    "given": Selector(
        "tlm_core.selection.given:uploaded_selection",
        summary="the selection that was uploaded with the dataset",
        origin="uploaded with the dataset",
        source="dataset",
        size="source",
    ),
    "none": Selector(
        "tlm_core.selection.sampling:nothing",
        summary="no passages: the task alone",
        origin="none",
        source="nothing",
        size="source",
    ),
}


def _known(name: str) -> str:
    if name not in SELECTORS:
        raise ValueError(f"Unknown selector '{name}'. Valid selectors: {', '.join(SELECTORS)}.")
    return name


def _list_selectors(schema: JsonDict) -> None:
    summaries = "; ".join(f"`{name}`: {selector.summary}" for name, selector in SELECTORS.items())
    schema.update(enum=[*SELECTORS], description=f"How passages are selected. {summaries}.")


class Selection(BaseModel):
    """Which passages a job trains on (paper section 3.1).

    A budget limits a selection to its best passages. A budget counts passages, tokens or both. Words count as tokens,
    because the tokenizer does not exist yet. It is trained on the selected texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: Annotated[
        str, AfterValidator(_known), Field(json_schema_extra=_list_selectors, description="how to select")
    ] = "bm25"
    top_k: int = Field(50, ge=1, le=10_000, description="passages for each train text; for `given`, the last rank used")
    query: Literal["text", "rake"] = Field("text", description="the whole train text, or its 20 best RAKE phrases")
    unique_terms: bool = Field(False, description="count a word once for each query, however often it occurs there")
    max_passages: int | None = Field(None, ge=1, description="budget in passages, best rank first")
    max_tokens: int | None = Field(None, ge=1, description="budget in words, best rank first")
    per_query_cap: int | None = Field(None, ge=1, le=1000, description="maximum number of passages from one train text")
    per_label_balance: bool = Field(False, description="let labels select passages in turn until the budget is spent")
    leak_filter: bool = Field(True, description="drop passages that contain validation or test texts")

    @property
    def definition(self) -> Selector:
        """The entry of `selector` in `SELECTORS`."""
        return SELECTORS[self.selector]

    @property
    def needs_corpus(self) -> bool:
        return self.definition.source == "corpus"

    @property
    def has_budget(self) -> bool:
        return self.max_passages is not None or self.max_tokens is not None

    @property
    def sized_by_queries(self) -> bool:
        """Whether the number of passages follows from the hits of the queries."""
        return self.definition.size == "queries" or (self.definition.size == "budget" and not self.has_budget)

    @model_validator(mode="after")
    def _check_options(self) -> Selection:
        special = {option for selector in SELECTORS.values() for option in selector.options}
        changed = {name for name in special if getattr(self, name) != type(self).model_fields[name].default}
        if ignored := sorted(changed - set(self.definition.options)):
            users = [name for name, selector in SELECTORS.items() if ignored[0] in selector.options]
            raise ValueError(
                f"Selector '{self.selector}' does not use '{ignored[0]}'. Remove the option, or choose one of these "
                f"selectors: {', '.join(users)}."
            )
        if self.per_label_balance and not self.has_budget:
            raise ValueError("'per_label_balance' divides a budget among labels. Set max_passages or max_tokens too.")
        return self
