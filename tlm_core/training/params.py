"""Which parts of a recipe each stage depends on. Torch-free: the coordinator names artifacts with it.

A stage's parameters are hashed into the name of its artifact. Leaving out what a stage does not read lets
another job with, say, another learning rate reuse the prepared data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlm_core.training.recipe import Recipe

# Raise a stage's number when its code changes what it writes; older artifacts are then not reused.
VERSIONS: dict[str, int] = {"prepare": 5, "joint": 6, "finetune": 4, "choose": 1, "evaluate": 4, "export": 2}

# In the facts of an artifact for which memory did not suffice: the same sums in another order are other bits, so that
# no other job takes it.
SHRUNK = "rows_held_at_once"

_READ: dict[str, tuple[str, ...]] = {
    "prepare": ("tokenizer",),
    "joint": ("model", "joint", "precision", "checkpoint_steps"),
    "finetune": ("model", "finetune", "precision", "checkpoint_steps"),
    "evaluate": (),
    "export": ("name", "scale", "selection", "tokenizer", "model", "joint", "finetune", "precision"),
}
_SEEDED = ("joint", "finetune")


def stage_params(stage: str, recipe: Recipe, seed: int | None = None) -> dict[str, Any]:
    """What `stage` reads: `{"recipe": {part: …}, "seed": …}`; the seed only for stages that train.

    Raises ValueError for a stage that is not one of training's, or one that trains without a seed.
    """
    if stage not in _READ:
        raise ValueError(f"no training stage '{stage}'; known are {', '.join(_READ)}")
    whole = recipe.model_dump(mode="json")
    parts = {part: whole[part] for part in _READ[stage]}
    if "finetune" in parts and (stage == "finetune" or not recipe.finetune.rates):
        # Each is a stage of its own, see `at_rate`; without any, stages are named as before there were rates.
        del parts["finetune"]["rates"]
    if stage == "prepare":
        parts["model"] = {key: whole["model"][key] for key in ("max_length", "architecture")}
        if recipe.model.init == "counts":  # the word vectors have the model's width
            parts["model"] |= {key: whole["model"][key] for key in ("init", "hidden")}
    if stage not in _SEEDED:
        return {"recipe": parts}
    if seed is None:
        raise ValueError(f"stage '{stage}' needs a seed")
    # Only where it is asked for: a traced stage is an artifact of its own, all others keep their names.
    return {"recipe": parts, "seed": seed} | ({"profile": True} if recipe.profile else {})


def at_rate(params: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """Parameters of a finetuning as `stage_params` gives them, with another peak rate."""
    recipe = params["recipe"]
    optimizer = {**recipe["finetune"]["optimizer"], "lr": rate}
    return {**params, "recipe": {**recipe, "finetune": {**recipe["finetune"], "optimizer": optimizer}}}


def reproducible(stage: str, recipe: Recipe) -> bool:
    """Whether the stage's result follows from its inputs alone: false for a wall-clock budget."""
    return not (stage == "joint" and recipe.joint.budget.seconds is not None)
