"""Parameters of the stages that every kind of job shares. This module does not import torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from tlm_core.selection.selectors import Selection
from tlm_core.tasks.options import DatasetOptions
from tlm_core.training.recipe import Finetune, Joint, Model, Optimizer, Precision, Recipe, RecipeName, Scale, Tokenizer
from tlm_core.training.stage import StageParams

# Metadata key of an artifact whose training reduced the micro-batch for lack of memory, so that sums round differently.
SHRUNK = "rows_held_at_once"
# Metadata key of an artifact with a tokenizer that the job trained, because the hub did not provide the published one.
OWN_TOKENIZER = "own_tokenizer"
NOT_CACHED = frozenset({SHRUNK, OWN_TOKENIZER})  # Each of these keys excludes the artifact from the cache.


class ValidateParams(StageParams):
    options: DatasetOptions


class SelectParams(StageParams):
    """Parameters of `select`. seed: always 0 in a job, so that all seeds of the job share one selection."""

    selection: Selection
    seed: int = 0


class PrepareParams(StageParams):
    """Parameters of `prepare`. vector_width: width of the token vectors for `model.init: counts`; None: no vectors."""

    tokenizer: Tokenizer
    architecture: str
    max_length: int | Literal["auto"]
    windows: int
    vector_width: int | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> PrepareParams:
        model = recipe.model
        return cls(
            tokenizer=recipe.tokenizer,
            architecture=model.architecture,
            max_length=model.max_length,
            windows=model.windows,
            vector_width=model.hidden if model.init == "counts" else None,
        )


class TrainParams(StageParams):
    """Parameters of every training stage. checkpoint_steps: steps between checkpoints. profile: see `Recipe`."""

    seed: int
    precision: Precision
    checkpoint_steps: int
    profile: bool = False

    @property
    def optimizer(self) -> Optimizer:
        raise NotImplementedError


class JointParams(TrainParams):
    model: Model
    joint: Joint

    @classmethod
    def of(cls, recipe: Recipe, seed: int) -> JointParams:
        return cls(model=recipe.model, joint=recipe.joint, **training(recipe, seed))

    @property
    def optimizer(self) -> Optimizer:
        return self.joint.optimizer


class TuneParams(TrainParams):
    """Parameters of finetuning an encoder or a BiLSTM. `finetune.rates` is empty, since each rate has its own node."""

    finetune: Finetune

    @property
    def optimizer(self) -> Optimizer:
        return self.finetune.optimizer


class FinetuneParams(TuneParams):
    model: Model

    @classmethod
    def of(cls, recipe: Recipe, seed: int, **extra: Any) -> Self:
        """Return the parameters of finetuning. extra: values of the fields that a subclass adds."""
        finetune = recipe.finetuning.model_copy(update={"rates": ()})
        return cls(model=recipe.model, finetune=finetune, **training(recipe, seed), **extra)


def training(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Return the values of `TrainParams` by field. Raises InvalidRecipe if the recipe's precision is still `auto`."""
    return {
        "seed": seed,
        "precision": recipe.number_format,
        "checkpoint_steps": recipe.checkpoint_steps,
        "profile": recipe.profile,
    }


class ChooseParams(StageParams):
    """Parameters of `choose`. tries: the values of each try, such as `{"lr": 0.001, "class_weights": "balanced"}`."""

    tries: tuple[dict[str, float | str], ...]


class SeedsParams(StageParams):
    """Parameters of a stage that evaluates the models of several seeds. ensemble: whether to average their outputs."""

    seeds: tuple[int, ...]
    ensemble: bool = False


class CardRecipe(StageParams):
    """The values of a recipe that the model card shows."""

    name: RecipeName
    scale: Scale
    selection: Selection
    tokenizer: Tokenizer
    model: Model
    joint: Joint
    finetune: Finetune
    precision: Precision

    @classmethod
    def of(cls, recipe: Recipe) -> CardRecipe:
        return cls.model_validate({name: getattr(recipe, name) for name in cls.model_fields})


class ExportParams(StageParams):
    recipe: CardRecipe
