"""What a user may say about a data set; all of it may be left to be guessed."""

from __future__ import annotations

from dataclasses import dataclass

from tlm_core.errors import InvalidRequest
from tlm_core.tasks.metrics import METRICS


@dataclass(frozen=True)
class DatasetOptions:
    """How to read a data set. None: guessed, with the reason in the report.

    text_pair_column: column of second texts; "" says that there is none. delimiter: of CSV files, one
    character. metric: a name in `metrics.METRICS`; pearson and spearman mean regression.
    positive_label: the label of which `f1` is taken (None: the last in order). language: ISO 639-1 code.
    split_seed: decides which rows go to a validation or test split that has to be cut.
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
            raise InvalidRequest(f"unknown metric '{self.metric}'; known are {', '.join(METRICS)}")
        if self.positive_label is not None and not (self.metric is None or METRICS[self.metric].positive_label):
            raise InvalidRequest(f"a positive label belongs to the metric f1, not to {self.metric}; leave one out")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InvalidRequest(f"the delimiter must be one character such as ',' or a tab; got {self.delimiter!r}")
        if not 0 <= self.split_seed < 2**32:
            raise InvalidRequest(f"split_seed must lie in 0..{2**32 - 1}; got {self.split_seed}")
        used = [c for c in (self.text_column, self.text_pair_column, self.label_column) if c]
        if len(set(used)) < len(used):
            raise InvalidRequest(f"text, text pair and label must be different columns; got {', '.join(used)}")


@dataclass(frozen=True)
class Limits:
    """Above these a data set is refused.

    max_text_chars: characters of one text. long_text_chars: characters from which a warning is given.
    max_labels: distinct labels of train. max_decimals: distinct decimal numbers up to which a label column is
    taken as names of classes, where no metric is told. max_columns: columns of one file.
    max_file_bytes: size of one file, unpacked. min_rows: distinct texts from which a split can be cut.
    """

    max_text_chars: int = 1_000_000
    long_text_chars: int = 100_000
    max_labels: int = 1000
    max_decimals: int = 20
    max_columns: int = 1000
    max_file_bytes: int = 4 << 30
    min_rows: int = 10
