"""Stages and nodes of several kinds: the check of published encoders, and the importance of heads and blocks."""

from __future__ import annotations

from collections.abc import Sequence

from tlm_core.compression.masks import Mask
from tlm_core.compression.params import CheckEncoderParams, ImportanceParams
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.training.recipe import OWN_STARTS, Recipe
from tlm_core.training.stage import Place, Stage

CHECK_ENCODER = Stage("check_encoder", "tlm_core.compression.ticket_stages:check_encoder", 1, CheckEncoderParams)
IMPORTANCE = Stage("importance", "tlm_core.compression.ticket_stages:importance", 2, ImportanceParams)


def importance_node(name: str, as_published: bool, prepared: str, finetune: str, seed: int) -> Node:
    """Return the node that measures the importance of heads and blocks in a finetuned model.

    as_published: measure as the authors' released code does. prepared, finetune: the nodes of tokens and model.
    """
    params = ImportanceParams(as_published=as_published)
    return Node(name, IMPORTANCE, params, {"prepared": prepared, "finetune": finetune}, seed=seed)


def check_encoder(
    inputs: PlanInputs[KindOptions], recipe: Recipe, levels: Sequence[float] = (), masks: Sequence[Mask] = ()
) -> Node | None:
    """Return the node that checks a published encoder, and that `levels` and `masks` fit it.

    None for other encoders, because the gateway checks them.
    """
    if recipe.model.init in OWN_STARTS:
        return None
    params = CheckEncoderParams(init=recipe.model.init, levels=tuple(levels), masks=tuple(masks))
    # Jobs on different datasets must not share the artifact, because deleting a dataset deletes its jobs' artifacts.
    return Node("check_encoder", CHECK_ENCODER, params, fixed={"dataset": inputs.datasets[0].ref.digest})


def before_training(nodes: Sequence[Node], check: Node | None) -> list[Node]:
    """Insert the check before the first node that runs on workers."""
    first = next(number for number, node in enumerate(nodes) if node.place is Place.WORKERS)
    return [*nodes[:first], *([check] if check else []), *nodes[first:]]
