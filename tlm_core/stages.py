"""The stages that several kinds of job use, with their versions.

The module of a kind under `tlm_core.kinds` defines the stages that no other kind uses.
"""

from __future__ import annotations

from tlm_core.compression.params import CheckEncoderParams, ImportanceParams
from tlm_core.linear.params import BaselineParams, SelfTrainParams
from tlm_core.training import params
from tlm_core.training.stage import Place, Stage

VALIDATE = Stage("validate", "tlm_core.tasks.validate:validate_stage", 8, params.ValidateParams, Place.COORDINATOR)
SELECT = Stage("select", "", 7, params.SelectParams, Place.RETRIEVER)
# A linear model needs no torch.
BASELINE = Stage("baseline", "tlm_core.linear.linear_stages:baseline", 8, BaselineParams, needs_torch=False)
SELF_TRAIN = Stage(
    "self_train", "tlm_core.linear.linear_stages:self_train_stage", 13, SelfTrainParams, needs_torch=False
)
REFIT_LINEAR = Stage("refit_linear", "tlm_core.linear.linear_stages:refit_linear", 5, BaselineParams, needs_torch=False)
EVALUATE_LINEAR = Stage(
    "evaluate_linear", "tlm_core.linear.linear_stages:evaluate_linear", 9, BaselineParams, needs_torch=False
)
EXPORT_LINEAR = Stage(
    "export_linear", "tlm_core.linear.linear_stages:export_linear", 7, BaselineParams, needs_torch=False
)
# Without torch, the workers of `prepare` start seconds earlier and need half the memory.
PREPARE = Stage("prepare", "tlm_core.training.prepare:prepare", 8, params.PrepareParams, needs_torch=False)
JOINT = Stage("joint", "tlm_core.training.encoder_stages:joint", 11, params.JointParams, parallel=True)
FINETUNE = Stage("finetune", "tlm_core.training.encoder_stages:finetune", 5, params.FinetuneParams, parallel=True)
REFIT = Stage("refit", "tlm_core.training.encoder_stages:refit", 2, params.FinetuneParams, parallel=True)
CHOOSE = Stage("choose", "tlm_core.training.encoder_stages:choose", 3, params.ChooseParams)
CHECK_ENCODER = Stage("check_encoder", "tlm_core.compression.ticket_stages:check_encoder", 1, CheckEncoderParams)
IMPORTANCE = Stage("importance", "tlm_core.compression.ticket_stages:importance", 2, ImportanceParams)
EVALUATE = Stage("evaluate", "tlm_core.training.evaluate:evaluate", 25, params.SeedsParams, parallel=True)
EXPORT = Stage("export", "tlm_core.training.export:export", 12, params.ExportParams)
