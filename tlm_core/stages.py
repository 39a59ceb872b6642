"""Stages: what each computes, where it runs, and the version of its result.

A kind of job defines the stages that only it uses in its own module under `tlm_core.kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any

from tlm_core.training import params
from tlm_core.training.stage import StageContext, StageParams

StageFunction = Callable[[StageContext[Any]], Mapping[str, Any]]

# In the metadata of an artifact that stands for skipped work, with the reason. Nodes that depend on it are skipped too.
DROPPED = "dropped"


class Place(StrEnum):
    """Where a stage runs."""

    COORDINATOR = "coordinator"
    RETRIEVER = "retriever"
    WORKERS = "workers"


@dataclass(frozen=True)
class Stage:
    """One stage of a job.

    function: "module:name" of a function that takes a StageContext and returns the artifact's metadata. It is empty
    for stages of the retriever. version: raise it when a change of the code changes the result; older artifacts are
    then not reused. params: the class of the stage's parameters. needs_torch: whether workers import torch for it.
    """

    name: str
    place: Place
    function: str
    version: int
    params: type[StageParams]
    needs_torch: bool = True

    def load(self) -> StageFunction:
        """Import the stage's module and return its function."""
        module, _, name = self.function.partition(":")
        function: StageFunction = getattr(import_module(module), name)
        return function


def worker(name: str, function: str, version: int, params: type[StageParams], *, needs_torch: bool = True) -> Stage:
    """A stage that runs on workers."""
    return Stage(name, Place.WORKERS, function, version, params, needs_torch)


VALIDATE = Stage("validate", Place.COORDINATOR, "tlm_core.tasks.validate:validate_stage", 2, params.ValidateParams)
SELECT = Stage("select", Place.RETRIEVER, "", 5, params.SelectParams)
# Preparing text needs no torch, so workers start it seconds earlier and with half the memory.
PREPARE = worker("prepare", "tlm_core.training.prepare:prepare", 5, params.PrepareParams, needs_torch=False)
JOINT = worker("joint", "tlm_core.training.stages:joint", 6, params.JointParams)
FINETUNE = worker("finetune", "tlm_core.training.stages:finetune", 4, params.FinetuneParams)
CHOOSE = worker("choose", "tlm_core.training.stages:choose", 1, params.ChooseParams)
EVALUATE = worker("evaluate", "tlm_core.training.evaluate:evaluate", 4, params.SeedsParams)
EXPORT = worker("export", "tlm_core.training.export:export", 3, params.ExportParams)

# The stages that several kinds of job use.
SHARED_STAGES = (VALIDATE, SELECT, PREPARE, JOINT, FINETUNE, CHOOSE, EVALUATE, EXPORT)
