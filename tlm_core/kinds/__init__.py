"""The kinds of jobs. A new kind is one module here and one entry in `MODULES`.

`MODULES` has names instead of modules, because the module of each kind imports `jobs.spec`, which imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlm_core.jobs.spec import KindOptions
    from tlm_core.kinds.kind import Kind

MODULES = {
    "train": "tlm_core.kinds.train",
    "learning_curve": "tlm_core.kinds.learning_curve",
    "prune": "tlm_core.kinds.prune",
    "share_tickets": "tlm_core.kinds.share_tickets",
}


class _Kinds(Mapping[str, "Kind[KindOptions]"]):
    """A mapping from the name of a kind to the object `KIND` of its module. Reading an entry imports the module."""

    def __getitem__(self, name: str) -> Kind[KindOptions]:
        return import_module(MODULES[name]).KIND

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


KINDS = _Kinds()
