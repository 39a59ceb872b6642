"""The kinds of jobs. A new kind is one module here and one entry in `KINDS`."""

from __future__ import annotations

from typing import Any

from tlm_core.kinds import learning_curve, prune, share_tickets, train
from tlm_core.kinds.kind import Kind

KINDS: dict[str, Kind[Any]] = {
    train.KIND.name: train.KIND,
    learning_curve.KIND.name: learning_curve.KIND,
    prune.KIND.name: prune.KIND,
    share_tickets.KIND.name: share_tickets.KIND,
}
