"""The table of encoder architectures. It names classes, so that importing a recipe imports no architecture."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlm_core.training.architectures.base import Architecture


@dataclass(frozen=True)
class Entry:
    """An architecture. path: `module:class`. from_scratch: False if only published models have it."""

    path: str
    from_scratch: bool = True


ARCHITECTURES = {
    "modernbert": Entry("tlm_core.training.architectures.modernbert:ModernBert"),
    "bert": Entry("tlm_core.training.architectures.bert:Bert"),
    "electra": Entry("tlm_core.training.architectures.bert:Electra"),
    "roberta": Entry("tlm_core.training.architectures.bert:Roberta", from_scratch=False),
}


@cache
def architecture_named(name: str) -> Architecture:
    """Return an architecture of the table."""
    return pkgutil.resolve_name(ARCHITECTURES[name].path)()
