"""Parameters of the stages that prune models and share tickets. This module does not import torch."""

from __future__ import annotations

from tlm_core.compression.masks import Mask, Which
from tlm_core.training.params import ExportParams, FinetuneParams
from tlm_core.training.stage import StageParams


def ticket_name(which: str, level: float, seed: int) -> str:
    """Return the name of a ticket's node in the plan, such as "ticket.winning.l0.2.s1"."""
    return f"ticket.{which}.l{level:g}.s{seed}"


class CheckEncoderParams(StageParams):
    """A published encoder (folder or hub id), and levels and masks of tickets to check against its layers and heads."""

    init: str
    levels: tuple[float, ...] = ()
    masks: tuple[Mask, ...] = ()


class ImportanceParams(StageParams):
    as_published: bool


class TicketParams(FinetuneParams):
    """Parameters of `ticket`. which: see `masks.one_shot`. level: share of heads and blocks to remove."""

    which: Which
    level: float


class PhasesParams(ExportParams):
    tickets: tuple[Which, ...]
    levels: tuple[float, ...]
    seeds: tuple[int, ...]


class MergeParams(StageParams):
    names: tuple[str, ...]


class PartParams(StageParams):
    """Parameters of `part`. number: index of the task among the merged tasks."""

    number: int


class ShareParams(FinetuneParams):
    """Parameters of `share`. tickets: one entry for each task: a level, a mask, or None for the dense model."""

    tickets: tuple[float | Mask | None, ...]
