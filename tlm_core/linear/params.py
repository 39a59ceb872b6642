"""Parameters of the stages of the linear model."""

from __future__ import annotations

from tlm_core.training.stage import StageParams

MOST_LABELED = 20_000  # limit on the pieces that a linear model learns from


class SelfTrainParams(StageParams):
    """Parameters of `self_train`. amounts: labeled pieces of passages per train row; validation chooses one amount."""

    amounts: tuple[float, ...]


class BaselineParams(StageParams):
    """The baseline stage has no parameters: cross-validation and validation choose the setting."""
