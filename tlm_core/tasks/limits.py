"""Limits of a dataset."""

from __future__ import annotations

MAX_TEXT_CHARS = 1_000_000
LONG_TEXT_CHARS = 100_000  # a longer text causes a warning
MAX_LABELS = 1000  # labels of train
MAX_LABEL_CHARS = 1000
MAX_DECIMALS = 20  # distinct decimal numbers up to which a label column is read as classes if no metric is set
MAX_FILE_BYTES = 4 << 30  # bytes of one unpacked file
MIN_ROWS = 10  # distinct texts of train; with fewer, no split is cut from train
ROWS_TO_CHOOSE = 100  # rows of validation; with fewer, jobs compare no models, because chance would decide
ROWS_TO_SCORE = 30  # rows of test; fewer cause a warning
