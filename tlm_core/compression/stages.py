"""The stages of a `prune` job: importance, one finetuned ticket for each mask, the choice among them, the export."""

from __future__ import annotations

import json
from typing import Any

from tlm_core.compression.importance import importance as importance_of
from tlm_core.compression.masks import Importance, one_shot, removals
from tlm_core.compression.params import CheckEncoderParams, ImportanceParams, TicketParams
from tlm_core.compression.sliced import MASK, sliced, spared_flops
from tlm_core.training import published
from tlm_core.training.device import pick_device
from tlm_core.training.objective import step_flops
from tlm_core.training.prepared import Batch, Prepared
from tlm_core.training.stage import StageContext, StopRequested
from tlm_core.training.stages import start, tune
from tlm_core.training.state import load_model

IMPORTANCE = "importance.json"


def check_encoder(ctx: StageContext[CheckEncoderParams]) -> dict[str, Any]:
    """Refuse a published encoder `init` of another kind, and tickets that it has no room for, before any training.

    No inputs. Parameters: `init`, `levels`, `masks`. Raises InvalidRequest, InvalidRecipe for an encoder of another
    kind, and NotFound or Unavailable for one that cannot be had.
    """
    source = ctx.params.init
    shape = published.shape_of(published.read_config(published.fetch_config(source), source), source)
    for level in ctx.params.levels:
        removals(level, shape.layers, shape.heads)
    for mask in ctx.params.masks:
        mask.check(shape.layers, shape.heads)
    found = {"layers": shape.layers, "heads": shape.heads}
    if not ctx.rank:
        (ctx.out / "shape.json").write_text(json.dumps(found), encoding="utf-8")
    return found


def importance(ctx: StageContext[ImportanceParams]) -> dict[str, Any]:
    """Write the importance of each head and block for the finetuned model, over all train texts.

    Inputs: `prepared`, `finetune`. Parameter `as_published`: see `compression.importance`. Raises StopRequested when
    asked to stop; the stage is short and starts anew on resume.
    """
    if ctx.rank:
        return {}
    prepared, device = Prepared(ctx.inputs["prepared"]), pick_device()
    model, split = load_model(ctx.inputs["finetune"]).to(device), prepared.split("train")

    def told(done: int) -> None:
        go_on = ctx.report.progress(step=done, total=len(split), rate=None, unit="texts", eta_seconds=None)
        if not go_on and done < len(split):
            raise StopRequested("stopped on request while weighing heads and blocks; resume to start this stage anew")

    found = importance_of(model, split, prepared, device=device, as_published=ctx.params.as_published, told=told)
    (ctx.out / IMPORTANCE).write_text(json.dumps(found.as_dict()), encoding="utf-8")
    return {"layers": len(found.blocks), "heads": int(found.heads.shape[1])}


def ticket(ctx: StageContext[TicketParams]) -> dict[str, Any]:
    """Rewind to the weights before finetuning, cut away what the mask drops, finetune what is left (section 3.2).

    Inputs: `prepared`, `importance`, and `joint` unless the recipe leaves it out. Parameters beside those of
    finetuning: `level` (share removed), `which` (winning, random, losing).
    """
    found = Importance.from_dict(json.loads((ctx.inputs["importance"] / IMPORTANCE).read_text(encoding="utf-8")))
    mask = one_shot(found, ctx.params.level, ctx.params.which, ctx.params.seed)
    model, before = start(ctx)

    def flops(batch: Batch) -> float:
        saved = spared_flops(model.shape, mask, len(batch.rows), batch.tokens.shape[1])
        return step_flops(model.shape, batch) - saved

    meta = tune(ctx, sliced(model, mask), before, flops=flops)
    if not ctx.rank:
        (ctx.out / MASK).write_text(json.dumps(mask.as_dict()), encoding="utf-8")
    return meta
