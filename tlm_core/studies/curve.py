"""The last stage of a `learning_curve` job: all points together, the fitted laws, the plot, and the BiLSTM to keep."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlm_core.studies.bilstm import load_bilstm
from tlm_core.studies.fit import compare, fit
from tlm_core.studies.lstm_export import INT8, export_lstm, lstm_onnx
from tlm_core.studies.measure import compare_graphs, in_words
from tlm_core.studies.params import CurveParams, family, size_name
from tlm_core.studies.plot import Curve, write_plot
from tlm_core.tasks.metrics import best_of, scores_for, summary
from tlm_core.training.evaluate import over_seeds, report_meta, total_cost
from tlm_core.training.graph import write_onnx
from tlm_core.training.prepared import Prepared
from tlm_core.training.stage import StageContext
from tlm_core.training.state import load_model, weights

BILSTM = "bilstm"
TIMED = 64
SPEEDS = {"speed_up": "inference", "speed_up_int8": "int8"}


def curve(ctx: StageContext[CurveParams]) -> dict[str, Any]:
    """Write `report.json`, `curves.csv`, `plot.svg`, and the BiLSTM of the largest size as `export_lstm` does.

    Inputs: `sizes`, `evaluate.{model}.n{size}.s{seed}`, and of the largest size `prepared.{model}.s{seed}` and
    `trained.{model}.s{seed}`. Parameters: `models` (of which `bilstm` is one), `seeds`, `margin`.
    """
    if ctx.rank:
        return {}
    models: Sequence[str] = ctx.params.models
    seeds = ctx.params.seeds
    sizes = json.loads((ctx.inputs["sizes"] / "sizes.json").read_text(encoding="utf-8"))
    kept = [size for size in sizes if not size["dropped"]]
    reports = {
        (model, size["rows"], seed): _report(ctx.inputs[f"evaluate.{model}.n{size_name(size['asked'])}.s{seed}"])
        for model in models
        for size in kept
        for seed in seeds
    }
    rows = [size["rows"] for size in kept]
    report: dict[str, Any] = {
        "kind": "learning_curve",
        **_whole([reports[BILSTM, rows[-1], seed] for seed in seeds]),
        "cost": _cost(reports),
        "sizes": rows,
        "dropped": [size for size in sizes if size["dropped"]],
        "models": {model: _model(model, reports, rows, seeds) for model in models},
    }
    best = report["best_seed"]
    prepared = Prepared(ctx.inputs[f"prepared.{BILSTM}.s{best}"])
    int8 = export_lstm(load_bilstm(ctx.inputs[f"trained.{BILSTM}.s{best}"]), prepared, ctx.out)
    _add_inference(ctx, report, seeds[0], best)
    report["models"][BILSTM]["int8"] |= int8
    _add_crossings(report, ctx.params.margin)
    report["words"] = words(report)
    _write(ctx.out, report)
    return {**report_meta(report), "words": report["words"]}


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def _whole(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The BiLSTM of the largest size, which is what gets exported, as one report over its seeds."""
    seeds = [run["seeds"][0] for run in runs]
    same = {name: runs[0][name] for name in ("task", "metric", "labels", "majority")}
    best = seeds[best_of([entry["validation"]["value"] for entry in seeds])]
    return {**same, "seeds": seeds, **over_seeds(seeds), "best_seed": best["seed"]}


def _cost(reports: Mapping[tuple[str, int, int], Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Cost by stage, and in all, over several reports; tokens and a joint stage that models share count once."""
    costs = {}
    for (model, rows, seed), report in reports.items():
        for stage, cost in report["cost"].items():
            if stage != "total":
                whose = model if stage == "finetune" else family(model)
                costs[stage, whose, rows, seed] = {stage: cost}
    return total_cost(list(costs.values()))


def _model(
    model: str, reports: Mapping[tuple[str, int, int], Mapping[str, Any]], sizes: Sequence[int], seeds: Sequence[int]
) -> dict[str, Any]:
    """Points, cost and power law of one model."""
    points = []
    for rows in sizes:
        runs = [reports[model, rows, seed]["seeds"][0] for seed in seeds]
        names = scores_for(reports[model, rows, seeds[0]]["metric"])
        point: dict[str, Any] = {"labels": rows, "mean": {"validation": {}, "test": {}}, "spread": {"test": {}}}
        for name in names:
            over = summary([run["test"][name] for run in runs])
            point["mean"]["test"][name], point["spread"]["test"][name] = over["mean"], over["std"]
            point["mean"]["validation"][name] = summary([run["validation"][name] for run in runs])["mean"]
        point["runs"] = [_run(run, names) for run in runs]
        point["cost"] = _cost({(model, rows, seed): reports[model, rows, seed] for seed in seeds})["total"]
        points.append(point)
    return {"points": points, "law": _law(points)}


def _run(run: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Scores of one seed, and the rate that validation chose where several were tried."""
    found = {name: run["test"][name] for name in (*names, "value")}
    return {**found, "lr": run["chosen"]["lr"]} if "tries" in run else found


def _law(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """error = a * n ** -b + c through the mean errors (1 - accuracy); nulls with a reason where there is no fit."""
    try:
        law = fit([p["labels"] for p in points], [1 - p["mean"]["test"]["accuracy"] for p in points])
    except ValueError as error:
        return {"a": None, "b": None, "c": None, "reason": str(error)}
    return {"a": law.a, "b": law.b, "c": law.c}


def _add_crossings(report: dict[str, Any], margin: float) -> None:
    """`against`, what `_against` tells of each encoder: of `bilstm` in the report, of its variant in that model."""
    models = report["models"]
    for lstm in [model for model in models if model.startswith(BILSTM)]:
        found = {model: _against(report, lstm, model, margin) for model in models if not model.startswith(BILSTM)}
        (report if lstm == BILSTM else models[lstm])["against"] = found


def _against(report: Mapping[str, Any], lstm: str, model: str, margin: float) -> dict[str, Any]:
    """Where `lstm` comes within `margin` of `model`, and how many times as fast it is; in 8 bits where it has them."""

    def errors(name: str) -> list[tuple[float, list[float]]]:
        points = report["models"][name]["points"]
        return [(p["labels"], [1 - run["accuracy"] for run in p["runs"]]) for p in points]

    found = compare(errors(lstm), errors(model), margin=margin)
    own, other = report["models"][lstm], report["models"][model]["inference"]["seconds_per_text"]
    speed_up = {name: other / own[part]["seconds_per_text"] for name, part in SPEEDS.items() if part in own}
    return {**found, **speed_up}


def _add_inference(ctx: StageContext[CurveParams], report: dict[str, Any], first: int, best: int) -> None:
    """Size and speed of each model's ONNX graph, trained on the largest size, on the first validation texts."""
    graphs, texts, pads = {}, {}, {}
    for model in map(str, ctx.params.models):
        seed = best if model == BILSTM else first
        prepared, trained = Prepared(ctx.inputs[f"prepared.{model}.s{seed}"]), ctx.inputs[f"trained.{model}.s{seed}"]
        graphs[model] = ctx.scratch / f"{model}.onnx"
        if model.startswith(BILSTM):
            lstm_onnx(load_bilstm(trained), graphs[model])
        else:
            encoder = load_model(trained)
            arrays = {name: tensor.numpy() for name, tensor in weights(encoder).items()}
            write_onnx(encoder.shape, arrays, graphs[model])
        split = prepared.split("validation")
        texts[model] = [split.store[number] for number in range(min(TIMED, len(split)))]
        pads[model] = prepared.vocabulary.pad
    graphs[INT8], texts[INT8], pads[INT8] = ctx.out / INT8, texts[BILSTM], pads[BILSTM]
    found = compare_graphs(graphs, texts, pads)
    report["models"][BILSTM]["int8"] = found.pop(INT8)
    for model, one in found.items():
        report["models"][model]["inference"] = one


def words(report: Mapping[str, Any]) -> str:
    """What came out, in a paragraph."""
    last = report["models"][BILSTM]["points"][-1]
    metric, most = report["metric"], last["labels"]
    alike = report["models"][BILSTM]["int8"]["agreement"]
    found = [f"With {most:,} labels the BiLSTM reaches {_reached(last, metric)} in {metric} on test."]
    found += _crossings(report, BILSTM, report["against"])
    for model, one in report["models"].items():
        if "against" in one:
            reached = _reached(one["points"][-1], metric)
            found.append(f"With the token embeddings of TLM ('{model}') it reaches {reached}.")
            found += _crossings(report, model, one["against"])
    found.append(f"With weights of 8 bits the BiLSTM labels {alike:.1%} of validation texts as it does without.")
    for size in report["dropped"]:
        found.append(f"{size['rows']} labels were left out: {size['dropped']}.")
    return " ".join(found)


def _reached(point: Mapping[str, Any], metric: str) -> str:
    mean = point["mean"]["test"][metric]  # null where, say, no test text has the label of which F1 is told
    return "(not computed)" if mean is None else f"{mean:.4f}"


def _crossings(report: Mapping[str, Any], lstm: str, against: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on one LSTM beside each encoder."""
    found, own = [], report["models"][lstm]["points"][-1]["mean"]["test"]["accuracy"]
    for model, one in against.items():
        gap = report["models"][model]["points"][-1]["mean"]["test"]["accuracy"] - own
        found.append(f"There it is {abs(gap):.1%} {'below' if gap > 0 else 'above'} '{model}' in accuracy.")
        faster = f"it {in_words(one['speed_up'])} on one core"
        if "speed_up_int8" in one:
            faster += f", with weights of 8 bits it {in_words(one['speed_up_int8'])}"
        if one["labels"] is None:
            found.append(f"Where the two meet cannot be told ({one['reason']}); {faster}.")
            continue
        within = f"within {one['margin']:.1%} of '{model}'"
        found.append(f"By the fitted power laws, from some {_about(one['labels'])} labels on it is {within}: {faster}.")
        if one["interval"] is not None:
            ends = ["beyond what was looked at" if end is None else _about(end) for end in one["interval"]]
            found.append(f"The 90 % interval of that number reaches from {ends[0]} to {ends[1]}.")
        if "note" in one:
            found.append(f"That is {one['note']}.")
    return found


def _about(count: float) -> str:
    """Two digits: a fit through a few points knows no more."""
    return f"{float(f'{count:.1e}'):,.0f}"


def _write(out: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    (out / "report.json").write_text(text, encoding="utf-8")
    with open(out / "curves.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        names = scores_for(report["metric"])
        table.writerow(["model", "labels", "seed", *names])
        for model, found in report["models"].items():
            for point in found["points"]:
                for entry, run in zip(report["seeds"], point["runs"], strict=True):
                    table.writerow([model, point["labels"], entry["seed"], *(run[name] for name in names)])
    lines = []
    for model, found in report["models"].items():
        means = [(p["labels"], p["mean"]["test"], p["spread"]["test"]) for p in found["points"]]
        lines.append(Curve(model, [(n, mean["accuracy"], spread["accuracy"]) for n, mean, spread in means]))
    title = f"{report['task']}: accuracy on test by number of labels"
    write_plot(out / "plot.svg", lines, title=title, x="labelled texts", y="accuracy", log_x=True)
