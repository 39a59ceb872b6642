"""What the kinds of job other than `train` ask for beyond a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tlm_core.compression.masks import Mask, Which
from tlm_core.errors import InvalidRequest
from tlm_core.hub import MODEL
from tlm_core.studies.params import LSTM, CurveModel


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LearningCurve(_Options):
    """Options of a `learning_curve` job (arXiv 2006.08671).

    models: `bilstm` from scratch (always), `bilstm_tlm` with the token embeddings of the TLM model, `encoder` on the
    task alone, `tlm`, `pretrained`.
    """

    sizes: tuple[float, ...] = Field(
        (0.01, 0.03, 0.1, 0.3, 1.0), min_length=2, max_length=20, description="shares up to 1, counts above"
    )
    models: tuple[CurveModel, ...] = Field(("bilstm", "encoder", "tlm"), min_length=1)
    lstm: LSTM = LSTM()
    pretrained: str | None = Field(
        None, pattern=rf"^({MODEL}|/.+)$", description="hub:OWNER/NAME[@REVISION] or a folder"
    )
    unlabelled: bool = Field(False, description="TLM may query with all train texts, not only the subset's")
    margin: float = Field(0.01, ge=0, lt=1, description="how far below another model is near enough, in accuracy")

    @property
    def largest(self) -> float:
        """The size with the most rows; where both stand, a whole (1) counts as more than any count."""
        shares = [size for size in self.sizes if size <= 1]
        return 1 if 1 in shares else max(self.sizes)

    @model_validator(mode="after")
    def _possible(self) -> LearningCurve:
        if min(self.sizes) <= 0 or any(size > 1 and size != int(size) for size in self.sizes):
            raise ValueError("sizes are shares above 0 up to 1, or whole counts above 1")
        if len(set(self.sizes)) < len(self.sizes) or len(set(self.models)) < len(self.models):
            raise ValueError("no size and no model may stand twice")
        if any(size > 1 for size in self.sizes) and any(size < 1 for size in self.sizes):
            raise ValueError("give shares or counts (1 is the whole in both), not a mixture")
        if "bilstm" not in self.models:
            raise ValueError("'bilstm' has to be among the models: the others are compared with it")
        if ("pretrained" in self.models) != (self.pretrained is not None):
            raise ValueError("the model 'pretrained' and the option that names it, 'pretrained', go together")
        return self


class Prune(_Options):
    """Options of a `prune` job (Super Tickets, arXiv 2105.12002).

    job: its model (of a `prune` job the dense one) is pruned, and its data set, corpus, recipe and seeds are taken;
    none: the recipe's model, trained or found.
    """

    job: str | None = Field(None, pattern=r"^job_", max_length=100, description="a finished `train` or `prune` job")
    levels: tuple[float, ...] = Field(
        (0.15, 0.3, 0.45, 0.6), min_length=1, max_length=30, description="shares of heads and blocks that go"
    )
    tickets: tuple[Which, ...] = Field(("winning", "random", "losing"), min_length=1)
    as_published: bool = Field(False, description="importance as the authors' released code computes it")

    @model_validator(mode="after")
    def _possible(self) -> Prune:
        if not all(0 < level < 1 for level in self.levels):
            raise ValueError("levels are shares between 0 and 1; the dense model is always there")
        if len(set(self.levels)) < len(self.levels) or len(set(self.tickets)) < len(self.tickets):
            raise ValueError("no level and no ticket may stand twice")
        if "winning" not in self.tickets:
            raise ValueError("'winning' has to be among the tickets: the super ticket is one of them")
        return self


class ShareTickets(_Options):
    """Options of a `share_tickets` job: tasks that share an encoder (arXiv 2105.12002, section 4).

    tickets: for each data set, by the name it has in the request, a level, a mask file's content, or the id of the
    `prune` job that found its super ticket.
    """

    others: tuple[str, ...] = Field(min_length=1, max_length=19, description="data sets beside `dataset`, id or name")
    level: float = Field(0.15, gt=0, lt=1, description="share of heads and blocks that go where none is given")
    tickets: dict[str, float | Mask | str] = Field(
        {}, description="dataset → level, mask as `prune` writes it, or id of a `prune` job"
    )
    as_published: bool = Field(False, description="importance as the authors' released code computes it")

    def ticket(self, name: str) -> float | Mask:
        """Return the ticket of one dataset. Tickets given by a job's id must have been replaced by their masks."""
        ticket = self.tickets.get(name, self.level)
        assert not isinstance(ticket, str), "the gateway replaces ids by masks"
        return ticket

    @field_validator("tickets", mode="before")
    @classmethod
    def _check_tickets(cls, tickets: Any) -> Any:
        """Read masks, and check levels and ids. Raises ValueError."""
        return {name: _ticket(name, value) for name, value in tickets.items()} if isinstance(tickets, dict) else tickets


def _ticket(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        try:
            return Mask.from_dict(value)
        except InvalidRequest as error:
            raise ValueError(f"Invalid ticket of '{name}'. {error.message}") from error
    if isinstance(value, str) and not value.startswith("job_"):
        raise ValueError(f"Invalid ticket of '{name}': '{value[:80]}'. Expected a level, a mask, or the id of a job.")
    if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"Invalid ticket of '{name}': {value}. A level must be above 0 and below 1.")
    return value
