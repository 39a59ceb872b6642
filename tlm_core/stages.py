"""Every stage that runs on workers, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tlm_core.compression.stages import STAGES as COMPRESSION
from tlm_core.studies.stages import STAGES as STUDIES
from tlm_core.training.stage import StageContext
from tlm_core.training.stages import STAGES as TRAINING

STAGES: Mapping[str, Callable[[StageContext], dict[str, Any]]] = {**TRAINING, **COMPRESSION, **STUDIES}
