"""Options of a dataset."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from tlm_core.errors import InvalidRequest
from tlm_core.fields import names_valid_fields
from tlm_core.tasks.metrics import METRICS

_Metric = Annotated[str, Field(json_schema_extra=lambda schema: schema.update(enum=[*METRICS]))]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DatasetOptions:
    """Options for reading a dataset. The service infers missing options, and the report states the reasons."""

    _names_valid_fields = names_valid_fields

    text_column: str | None = Field(default=None, max_length=200)
    text_pair_column: str | None = Field(
        default=None, max_length=200, description='column of second texts; "" for none'
    )
    label_column: str | None = Field(default=None, max_length=200)
    delimiter: str | None = Field(default=None, description="separator of fields in CSV files: one character")
    metric: _Metric | None = Field(default=None, description="the main score; pearson and spearman select regression")
    language: str | None = Field(default=None, pattern=r"^[a-z]{2,3}$", description="ISO 639 code")
    name: str | None = Field(
        default=None, max_length=200, description="name of the task in reports and on the model card"
    )
    split_seed: int = Field(
        default=0,
        description="random seed for validation and test splits that are cut from train",
        json_schema_extra={"minimum": 0, "exclusiveMaximum": 2**32},
    )
    positive_label: str | None = Field(
        default=None, description="the label that the metric f1 measures; by default the last in order"
    )

    def __post_init__(self) -> None:
        """Validate the options. Raises InvalidRequest."""
        if self.metric is not None and self.metric not in METRICS:
            raise InvalidRequest(f"Unknown metric '{self.metric}'. Valid metrics: {', '.join(METRICS)}.")
        if self.positive_label is not None and not (self.metric is None or METRICS[self.metric].positive_label):
            raise InvalidRequest(
                f"positive_label needs the metric f1, not {self.metric}. Set metric to f1, or remove positive_label."
            )
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InvalidRequest(f"Invalid delimiter {self.delimiter!r}. Expected one character, such as ',' or a tab.")
        if not 0 <= self.split_seed < 2**32:
            raise InvalidRequest(f"Invalid split_seed {self.split_seed}. Expected 0 to {2**32 - 1}.")
        used = [c for c in (self.text_column, self.text_pair_column, self.label_column) if c]
        if len(set(used)) < len(used):
            raise InvalidRequest(
                f"text_column, text_pair_column and label_column need different columns, but name {', '.join(used)}."
            )
