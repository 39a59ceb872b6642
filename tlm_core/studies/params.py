"""Parameters of the stages of a learning curve. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tlm_core.fields import names_valid_fields
from tlm_core.training.params import TuneParams
from tlm_core.training.stage import StageParams

CurveModel = Literal["bilstm", "bilstm_tlm", "encoder", "tlm", "pretrained"]


def size_name(size: float) -> str:
    """Return a size as it appears in node names, such as "500" or "0.1". Different sizes have different names."""
    return str(int(size)) if size >= 1 else repr(float(size))


def family(model: str) -> str:
    """Return the family of a model: "own", "tlm" or "pretrained". A family shares all stages before finetuning."""
    return {"tlm": "tlm", "bilstm_tlm": "tlm", "pretrained": "pretrained"}.get(model, "own")


def linear_seeds(size: float, seeds: Sequence[int]) -> Sequence[int]:
    """Return the seeds for which the linear model is fitted.

    Size 1 is the full train split, which is the same for all seeds. So only the first seed needs a fit.
    """
    return seeds[:1] if size == 1 else seeds


class LSTM(BaseModel):
    """Shape and training of the BiLSTM. LSTM-4-256 (arXiv 2006.08671) has four layers, 256 wide in each direction.

    With `init: counts`, training starts from the token vectors that `prepare` writes for `model.init: counts`. These
    vectors have a fixed width, which replaces `embedding`. If `model.init` is not `counts`, the job uses `scratch`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    _names_valid_fields = names_valid_fields

    layers: int = Field(4, ge=1, le=8)
    hidden: int = Field(256, ge=8, le=1024, description="width of each direction")
    embedding: int = Field(256, ge=8, le=1024, description="width of the token vectors if they start at random")
    init: Literal["counts", "scratch"] = Field(
        "counts",
        description="scratch: random token vectors; counts: those of model.init counts, or random if it is not counts",
    )
    dropout: float = Field(0.2, ge=0, lt=1)
    lr: float = Field(2e-3, gt=0, description="peak learning rate of AdamW")


class SizesParams(StageParams):
    sizes: tuple[float, ...]
    seeds: tuple[int, ...]


class SubsetParams(StageParams):
    size: float
    seed: int


class BilstmParams(TuneParams):
    lstm: LSTM


class CurveParams(StageParams):
    models: tuple[CurveModel, ...]
    seeds: tuple[int, ...]
    margin: float
