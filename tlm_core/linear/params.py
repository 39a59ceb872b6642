"""Parameters of the stages of the linear model."""

from __future__ import annotations

from tlm_core.training.stage import StageParams

MOST_LABELED = 20_000  # pieces that a linear model learns from


class SelfTrainParams(StageParams):
    """amounts: numbers of labeled pieces of passages for each train row; validation chooses one of them."""

    amounts: tuple[float, ...]


class BaselineParams(StageParams):
    """The baseline stage has no parameters: cross-validation and validation choose the setting."""
