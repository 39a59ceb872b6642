"""States of corpora and of their loads."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

NearDuplicatesChoice = Literal["drop", "keep"]


class CorpusState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class LoadState(StrEnum):
    QUEUED = "queued"
    CUTTING = "cutting"
    INDEXING = "indexing"
    CANCELLING = "cancelling"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"
