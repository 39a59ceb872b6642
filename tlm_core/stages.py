"""Every stage that runs on workers, by name; its module is imported when it is first asked for.

Preparing text needs no torch: a worker begins with it seconds earlier, and in half the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from tlm_core.training.stage import StageContext

Stage = Callable[[StageContext], dict[str, Any]]

# Each is a function of that name there.
_MODULES = {
    "prepare": "training.prepare",
    "joint": "training.stages",
    "finetune": "training.stages",
    "choose": "training.choose",
    "evaluate": "training.evaluate",
    "export": "training.export",
    "tickets_fit": "compression.stages",
    "importance": "compression.stages",
    "ticket": "compression.stages",
    "phases": "compression.phases",
    "part": "compression.part",
    "share": "compression.sharing",
    "shared_report": "compression.shared_report",
    "bilstm": "studies.stages",
    "evaluate_bilstm": "studies.stages",
    "curve": "studies.curve",
}
WITHOUT_TORCH = frozenset({"prepare"})


class _Stages(Mapping[str, Stage]):
    def __getitem__(self, name: str) -> Stage:
        found: Stage = getattr(import_module(f"tlm_core.{_MODULES[name]}"), name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


STAGES: Mapping[str, Stage] = _Stages()
