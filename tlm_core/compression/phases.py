"""The last stage of a `prune` job: curves over all tickets, the super ticket, and its export."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tlm_core.compression.masks import Mask
from tlm_core.compression.params import PhasesParams
from tlm_core.compression.sliced import MASK, load_sliced, parameters, widened
from tlm_core.studies.measure import compare_graphs, in_words
from tlm_core.studies.plot import Curve, write_plot
from tlm_core.tasks.metrics import chance_in_words, summary
from tlm_core.tasks.task import Task
from tlm_core.training.device import pick_device
from tlm_core.training.evaluate import predict, report_meta, report_of, total_cost
from tlm_core.training.export import write_export
from tlm_core.training.graph import write_onnx
from tlm_core.training.prepared import Prepared, Split
from tlm_core.training.profiling import copy_traces
from tlm_core.training.stage import StageContext
from tlm_core.training.state import load_model, read_history, weights

TIMED = 64


def phases(ctx: StageContext[PhasesParams]) -> dict[str, Any]:
    """Write `report.json`, `curves.csv`, `plot.svg`, and the super ticket as `model/`, `model.onnx`, `labels.json`.

    Its mask is in `mask.json`, as `share_tickets` takes it.

    The super ticket is the winning level with the best mean validation score over seeds; at a tie the sparser one.
    Only it is tested, once for each seed. Inputs: `prepared`, `task`, `evaluate` (of the dense model),
    `finetune.s{seed}` and `ticket.{which}.l{level}.s{seed}`. Parameters: `levels`, `tickets`, `seeds`, `recipe`.
    """
    if ctx.rank:
        return {}
    prepared, task = Prepared(ctx.inputs["prepared"]), Task.read(ctx.inputs["task"])
    params, seeds = ctx.params, ctx.params.seeds
    dense = json.loads((ctx.inputs["evaluate"] / "report.json").read_text(encoding="utf-8"))
    curves = _curves(ctx.inputs, params)
    winning = (p for p in curves if p["ticket"] == "winning")
    chosen = max(winning, key=lambda p: (-math.inf if p["mean"] is None else p["mean"], p["level"]))
    folders = {seed: ctx.inputs[node_of("winning", chosen["level"], seed)] for seed in seeds}
    report: dict[str, Any] = {"kind": "prune", **report_of(folders, prepared, task, _answer(prepared))}
    report["dense"] = {name: dense[name] for name in ("mean", "spread", "cost")}
    report["curves"] = curves
    tickets = [node_of(which, level, seed) for which in params.tickets for level in params.levels for seed in seeds]
    report["sweep_cost"] = total_cost([{"tickets": read_history(ctx.inputs[name])["cost"]} for name in tickets])
    model, mask = load_sliced(folders[report["best_seed"]])
    full = widened(weights(model), model.shape, mask)
    report["super_ticket"] = {"level": chosen["level"], "mask": mask.as_dict(), **parameters(model.shape, mask)}
    write_export(ctx.out, model, full, prepared, task, report, params.recipe)
    whole = load_model(ctx.inputs[f"finetune.s{dense['best_seed']}"])
    graph = ctx.scratch / "dense.onnx"
    write_onnx(whole.shape, {name: tensor.numpy() for name, tensor in weights(whole).items()}, graph)
    report["inference"] = _inference({"dense": graph, "sliced": ctx.out / "model.onnx"}, prepared)
    report["words"] = words(report)
    (ctx.out / MASK).write_text(json.dumps(mask.as_dict()), encoding="utf-8")
    _write(ctx.out, report)
    copy_traces(folders[report["best_seed"]], ctx.out)
    return {"super_ticket": chosen["level"], **report_meta(report)}


def node_of(which: str, level: float, seed: int) -> str:
    """Name of a ticket's node in the plan."""
    return f"ticket.{which}.l{level:g}.s{seed}"


def _curves(inputs: Mapping[str, Path], params: PhasesParams) -> list[dict[str, Any]]:
    """One point for the dense model and one for each kind of ticket and level: validation scores over seeds."""
    seeds = params.seeds
    dense = [read_history(inputs[f"finetune.s{seed}"])["best"]["score"] for seed in seeds]
    points = [_point("dense", 0.0, 1.0, dense)]
    shape = load_model(inputs[f"finetune.s{seeds[0]}"]).shape
    for which in params.tickets:
        for level in params.levels:
            folders = [inputs[node_of(which, level, seed)] for seed in seeds]
            mask = Mask.from_dict(json.loads((folders[0] / MASK).read_text(encoding="utf-8")))
            counts = parameters(shape, mask)  # the same for each seed: a level fixes how many heads and blocks go
            left = counts["layers_left"] / counts["layers_full"]
            points.append(_point(which, level, left, [read_history(folder)["best"]["score"] for folder in folders]))
            points[-1] |= {"heads_left": mask.heads_left, "blocks_left": mask.blocks_left}
    return points


def _point(which: str, level: float, left: float, scores: list[float]) -> dict[str, Any]:
    over = summary(scores)
    reason = {"reason": over["reason"]} if "reason" in over else {}
    return {
        "ticket": which,
        "level": level,
        "weights_left": left,
        "validation": scores,
        "mean": over["mean"],
        "spread": over["std"],
        **reason,
    }


def _answer(prepared: Prepared) -> Any:
    device = pick_device()

    def answer(folder: Path, split: Split) -> npt.NDArray[np.float32]:
        return predict(load_sliced(folder)[0].to(device), split, prepared, device=device)

    return answer


def _inference(graphs: Mapping[str, Path], prepared: Prepared) -> dict[str, Any]:
    """Bytes and speed of both graphs on the first validation texts."""
    split = prepared.split("validation")
    texts = [split.store[number] for number in range(min(TIMED, len(split)))]
    pads = dict.fromkeys(graphs, prepared.vocabulary.pad)
    found: dict[str, Any] = dict(compare_graphs(graphs, dict.fromkeys(graphs, texts), pads))
    found["speed_up"] = found["dense"]["seconds_per_text"] / found["sliced"]["seconds_per_text"]
    found["threads"] = 1
    return found


def words(report: Mapping[str, Any]) -> str:
    """What came out, in a paragraph."""
    chosen, metric = report["super_ticket"], report["metric"]
    dense, ours = report["dense"]["mean"]["test"][metric], report["mean"]["test"][metric]
    left = chosen["layers_left"] / chosen["layers_full"]
    if dense is None or ours is None:
        return (
            f"No {metric} on test could be computed for some seed, so the dense model and the ticket are not compared."
        )
    seeds = len(report["seeds"])
    verdict = "better than" if ours > dense else "no better than"
    decided = report["mean"]["validation"][metric] is not None
    how = "did best on validation" if decided else "was taken, the sparsest, since validation has no score to decide by"
    text = (
        f"Of the winning tickets the one with {left:.0%} of the layers' weights {how}. On test it "
        f"has {ours:.4f} in {metric}, {verdict} the dense model's {dense:.4f} ({seeds} seed(s))."
    )
    chance = chance_in_words(ours - dense, [side["spread"]["test"][metric] for side in (report, report["dense"])])
    speed, sizes = report["inference"]["speed_up"], report["inference"]
    smaller = 1 - sizes["sliced"]["bytes"] / sizes["dense"]["bytes"]
    size = f"As ONNX it is {smaller:.0%} smaller and {in_words(speed)} on one core."
    return " ".join(filter(None, (text, chance, size)))


def _write(out: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (out / "report.json").write_text(text, encoding="utf-8")
    names = ("ticket", "level", "weights_left", "mean", "spread")
    with open(out / "curves.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*names, "validation"])
        for point in report["curves"]:
            table.writerow([*(point[name] for name in names), " ".join(map(str, point["validation"]))])
    kinds = list(dict.fromkeys(point["ticket"] for point in report["curves"]))
    lines = []
    for kind in kinds:
        known = [p for p in report["curves"] if p["ticket"] == kind and p["mean"] is not None]
        lines.append(Curve(kind, sorted((p["weights_left"], p["mean"], p["spread"]) for p in known)))
    title = f"{report['task']}: tickets on validation"
    write_plot(out / "plot.svg", lines, title=title, x="share of the layers' weights left", y=report["metric"])
