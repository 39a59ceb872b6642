"""The last stage of a `prune` job: scores of all tickets, and the test and export of the super ticket."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from tlm_core.compression.masks import Mask
from tlm_core.compression.params import PhasesParams, ticket_name
from tlm_core.compression.sliced import MASK, load_sliced, parameters, widened
from tlm_core.evaluation.combine import LINEAR
from tlm_core.evaluation.report import LinearResult, Report, gain, report_meta, total_cost
from tlm_core.json_files import read_json
from tlm_core.studies.measure import compare_graphs, encoder_onnx, token_batches
from tlm_core.studies.outputs import speed_in_words, write_outputs
from tlm_core.studies.plot import Curve, plot
from tlm_core.tasks.metrics import chance_in_words, summary
from tlm_core.tasks.task import Task
from tlm_core.training.evaluate import report_of
from tlm_core.training.export import write_export
from tlm_core.training.prepared import Prepared
from tlm_core.training.profiling import copy_traces
from tlm_core.training.stage import StageContext
from tlm_core.training.state import load_model, read_history, weights
from tlm_core.wording import counted


def phases(ctx: StageContext[PhasesParams]) -> dict[str, object]:
    """Write `report.json`, `curves.csv`, `plot.svg`, and the super ticket: its export and its mask in `mask.json`.

    The super ticket is the `winning` ticket with the best mean validation score over seeds, in a tie the sparsest.
    Only the super ticket is tested, once for each seed. Inputs: `prepared`, `task`, `baseline`, `evaluate` (of the
    dense model), `finetune.s{seed}` and `ticket.{which}.l{level}.s{seed}`.
    """
    prepared, task = Prepared(ctx.inputs["prepared"]), Task.read(ctx.inputs["task"])
    params, seeds = ctx.params, ctx.params.seeds
    dense = read_json(ctx.inputs["evaluate"] / "report.json")
    curves = _curves(ctx.inputs, params)
    winning = (point for point in curves if point["ticket"] == "winning")
    best = max(winning, key=lambda point: (-math.inf if point["mean"] is None else point["mean"], point["level"]))
    folders = {seed: ctx.inputs[ticket_name("winning", best["level"], seed)] for seed in seeds}
    scored, outputs = report_of(folders, prepared, task, lambda folder: load_sliced(folder)[0])
    report: Report = {"kind": "prune", **scored}
    report["dense"] = {**dense["models"]["encoder"], "cost": dense["cost"]}
    report["models"][LINEAR] = dense["models"][LINEAR]
    report |= {name: dense[name] for name in ("linear", "suspects") if name in dense}
    tickets = [ticket_name(*parts) for parts in product(params.tickets, params.levels, seeds)]
    costs = [{"tickets": read_history(ctx.inputs[ticket])["cost"]} for ticket in tickets]
    report["cost"] = total_cost([dense["cost"], *costs])
    linear = LinearResult.read(ctx.inputs["baseline"]).outputs["test"]
    sides = [outputs[f"test.s{seed}"] for seed in seeds], [linear]
    report["gain"] = gain(task, report, ("the super ticket", "the linear model"), *sides) | {"against": LINEAR}
    report["curves"] = curves
    model, mask = load_sliced(folders[report["best_seed"]])
    report["super_ticket"] = {"level": best["level"], "mask": mask.as_dict(), **parameters(model.shape, mask)}
    write_export(ctx.out, model, widened(weights(model), model.shape, mask), prepared, task, report, params.recipe)
    (ctx.out / MASK).write_text(json.dumps(mask.as_dict()), encoding="utf-8")
    graphs = {"dense": ctx.scratch / "dense.onnx", "sliced": ctx.out / "model.onnx"}
    encoder_onnx(ctx.inputs[f"finetune.s{dense['best_seed']}"], graphs["dense"])
    speeds = compare_graphs(graphs, dict.fromkeys(graphs, token_batches(prepared)))
    speed_up = speeds["dense"]["seconds_per_text"] / speeds["sliced"]["seconds_per_text"]
    report["inference"] = {**speeds, "speed_up": speed_up, "threads": 1}
    report["words"] = f"{words(report)} {report['gain']['words']}"
    _write(ctx.out, report)
    copy_traces(folders[report["best_seed"]], ctx.out)
    return {"super_ticket": best["level"], **report_meta(report)}


def _curves(inputs: Mapping[str, Path], params: PhasesParams) -> list[Report]:
    """Return the points of the plot: the dense model, then each ticket type and level, with scores on validation."""
    seeds = params.seeds
    points = [_point("dense", 0.0, 1.0, [inputs[f"finetune.s{seed}"] for seed in seeds])]
    shape = load_model(inputs[f"finetune.s{seeds[0]}"]).shape
    for which, level in product(params.tickets, params.levels):
        folders = [inputs[ticket_name(which, level, seed)] for seed in seeds]
        mask = Mask.from_dict(read_json(folders[0] / MASK))
        counts = parameters(shape, mask)  # equal for all seeds, because the level fixes the number of removed parts
        points.append(_point(which, level, counts["layers_left"] / counts["layers_full"], folders))
        points[-1] |= {"heads_left": mask.heads_left, "blocks_left": mask.blocks_left}
    return points


def _point(which: str, level: float, weights_left: float, folders: list[Path]) -> Report:
    scores = [read_history(folder)["best"]["score"] for folder in folders]
    over = summary(scores)
    point = {"ticket": which, "level": level, "weights_left": weights_left, "validation": scores}
    reason = {"reason": over["reason"]} if "reason" in over else {}
    return {**point, "mean": over["mean"], "spread": over["std"], **reason}


def words(report: Report) -> str:
    """Return a summary of the report, as a paragraph."""
    ticket, metric, inference = report["super_ticket"], report["metric"], report["inference"]
    dense, score = report["dense"]["mean"]["test"][metric], report["mean"]["test"][metric]
    if dense is None or score is None:
        return f"For some seed, test has no {metric}. So the report does not compare the ticket with the dense model."
    layers = ticket["layers_left"] / ticket["layers_full"]
    if report["mean"]["validation"][metric] is None:
        reason = "It is the sparsest winning ticket, because validation has no score to select by."
    else:
        reason = "It has the best validation score of the winning tickets."
    verdict = "better than" if score > dense else "not better than"
    text = (
        f"The super ticket has {layers:.0%} of the layers' weights. {reason} On test it has {score:.4f} in {metric}, "
        f"{verdict} the dense model's {dense:.4f} ({counted(len(report['seeds']), 'seed')})."
    )
    linear = report["models"][LINEAR]["mean"]["test"][metric]
    baseline = "" if linear is None else f"The linear model has {linear:.4f}."
    chance = chance_in_words(score - dense, [side["spread"]["test"][metric] for side in (report, report["dense"])])
    smaller = 1 - inference["sliced"]["bytes"] / inference["dense"]["bytes"]
    size = f"As ONNX it is {smaller:.0%} smaller and {speed_in_words(inference['speed_up'])} on one core."
    return " ".join(filter(None, (text, chance, baseline, size)))


def _write(out: Path, report: Report) -> None:
    """Write the report, the table, and the plot. The linear model has one row in the table and a line in the plot."""
    points, columns = report["curves"], ("ticket", "level", "weights_left", "mean", "spread")
    rows = [[*map(p.get, columns), " ".join(str(s) for s in p["validation"] if s is not None)] for p in points]
    curves = []
    for ticket in dict.fromkeys(point["ticket"] for point in points):
        scored = [point for point in points if point["ticket"] == ticket and point["mean"] is not None]
        curves.append(Curve(ticket, sorted((p["weights_left"], p["mean"], p["spread"]) for p in scored)))
    linear = report["models"][LINEAR]["mean"]["validation"][report["metric"]]
    rows.append([LINEAR, "", "", linear, "", linear])
    if linear is not None:
        ends = (min(point["weights_left"] for point in points), 1.0)
        curves.append(Curve(LINEAR, [(end, linear, None) for end in ends], dashed=True))
    title, x = f"{report['task']}: tickets on validation", "share of the layers' weights left"
    drawing = plot(curves, title=title, x=x, y=report["metric"])
    write_outputs(out, report, "curves.csv", [(*columns, "validation"), *rows], drawing)
