"""Options of a dataset and the limits of what is accepted."""

from __future__ import annotations

from dataclasses import dataclass

from tlm_core.errors import InvalidRequest
from tlm_core.tasks.metrics import METRICS


@dataclass(frozen=True)
class DatasetOptions:
    """How to read a dataset. None: inferred, with the reason in the report.

    text_pair_column: column of second texts; "" means none. delimiter: of CSV files, one character.
    metric: a name in `metrics.METRICS`; pearson and spearman mean regression.
    positive_label: the label that `f1` measures (None: the last in order). language: ISO 639-1 code.
    split_seed: decides which rows a validation or test split gets that is cut from train.
    Raises InvalidRequest.
    """

    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    delimiter: str | None = None
    metric: str | None = None
    language: str | None = None
    name: str | None = None
    split_seed: int = 0
    positive_label: str | None = None

    def __post_init__(self) -> None:
        if self.metric is not None and self.metric not in METRICS:
            raise InvalidRequest(f"Unknown metric '{self.metric}'. Valid metrics: {', '.join(METRICS)}.")
        if self.positive_label is not None and not (self.metric is None or METRICS[self.metric].positive_label):
            raise InvalidRequest(f"positive_label belongs to the metric f1, not to {self.metric}. Remove one.")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InvalidRequest(f"Invalid delimiter {self.delimiter!r}. Expected one character, such as ',' or a tab.")
        if not 0 <= self.split_seed < 2**32:
            raise InvalidRequest(f"Invalid split_seed {self.split_seed}. Expected 0 to {2**32 - 1}.")
        used = [c for c in (self.text_column, self.text_pair_column, self.label_column) if c]
        if len(set(used)) < len(used):
            raise InvalidRequest(f"Text, text pair and label need different columns, not {', '.join(used)}.")


@dataclass(frozen=True)
class Limits:
    """Limits of a dataset.

    max_text_chars: of one text; a text above long_text_chars is a warning. max_labels: of train.
    max_decimals: distinct decimal numbers up to which a label column is read as classes if no metric is set.
    max_columns: of one file. max_file_bytes: of one unpacked file. min_rows: distinct texts needed to cut a split.
    """

    max_text_chars: int = 1_000_000
    long_text_chars: int = 100_000
    max_labels: int = 1000
    max_decimals: int = 20
    max_columns: int = 1000
    max_file_bytes: int = 4 << 30
    min_rows: int = 10
