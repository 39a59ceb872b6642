"""Stages of a `prune` job: the importance of heads and blocks, and the finetuning of one ticket."""

from __future__ import annotations

import json

from tlm_core.compression.importance import importance as importance_of
from tlm_core.compression.masks import Importance, one_shot, removals
from tlm_core.compression.params import CheckEncoderParams, ImportanceParams, TicketParams
from tlm_core.compression.sliced import MASK, sliced, spared_flops
from tlm_core.json_files import read_json
from tlm_core.training import published
from tlm_core.training.device import pick_device
from tlm_core.training.encoder_stages import start, tune
from tlm_core.training.objective import step_flops
from tlm_core.training.prepared import Batch, Prepared
from tlm_core.training.stage import StageContext, StopRequested
from tlm_core.training.state import load_model

IMPORTANCE = "importance.json"


def check_encoder(ctx: StageContext[CheckEncoderParams]) -> dict[str, int]:
    """Check that a published encoder is supported and fits the levels and masks. Write its size to `shape.json`.

    No inputs. Raises InvalidRecipe for an unsupported encoder, and InvalidRequest if a level or mask does not fit.
    Raises NotFound if the encoder does not exist, and Unavailable if the hub does not answer.
    """
    source = ctx.params.init
    shape = published.shape_of(published.read_config(published.fetch_config(source), source), source)
    for level in ctx.params.levels:
        removals(level, shape.layers, shape.heads)
    for mask in ctx.params.masks:
        mask.check(shape.layers, shape.heads)
    size = {"layers": shape.layers, "heads": shape.heads}
    (ctx.out / "shape.json").write_text(json.dumps(size), encoding="utf-8")
    return size


def importance(ctx: StageContext[ImportanceParams]) -> dict[str, object]:
    """Write the importance of each head and block of the finetuned model, measured on all train texts.

    Inputs: `prepared`, `finetune`. The stage is short, so it writes no checkpoints: a pause raises StopRequested, and
    the stage starts again on resume.
    """
    prepared, device = Prepared(ctx.inputs["prepared"]), pick_device()
    model, split = load_model(ctx.inputs["finetune"]).to(device), prepared.split("train")

    def progress(texts: int) -> None:
        proceed = ctx.report.progress(step=texts, total=len(split), rate=None, unit="texts", eta_seconds=None)
        if not proceed and texts < len(split):
            raise StopRequested("Stopped on request. The stage 'importance' starts again on resume.")

    scores = importance_of(
        model, split, prepared, device=device, as_published=ctx.params.as_published, progress=progress
    )
    (ctx.out / IMPORTANCE).write_text(json.dumps(scores.as_dict()), encoding="utf-8")
    return {"layers": len(scores.blocks), "heads": int(scores.heads.shape[1])}


def ticket(ctx: StageContext[TicketParams]) -> dict[str, object]:
    """Rewind to the weights before finetuning, remove heads and blocks, and finetune (arXiv 2105.12002, section 3.2).

    Inputs: `prepared`, `importance`, and `joint` if the recipe has a joint stage.
    """
    scores = Importance.from_dict(read_json(ctx.inputs["importance"] / IMPORTANCE))
    mask = one_shot(scores, ctx.params.level, ctx.params.which, ctx.params.seed)
    model, before = start(ctx)

    def flops(batch: Batch) -> float:
        saved = spared_flops(model.shape, mask, batch.size, batch.tokens.shape[1])
        return step_flops(model.shape, batch) - saved

    meta = tune(ctx, sliced(model, mask), before, flops=flops)
    if not ctx.rank:
        (ctx.out / MASK).write_text(json.dumps(mask.as_dict()), encoding="utf-8")
    return meta
