"""The last stage of a `learning_curve` job: all points, the fitted power laws, and the export of the BiLSTM.

The stage compares the BiLSTM with each encoder, and each of these models with the linear model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tlm_core.evaluation.combine import LINEAR, Outputs
from tlm_core.evaluation.report import Report, gain, over_seeds, report_meta, total_cost
from tlm_core.evaluation.summary import PREDICTIONS, REPORT
from tlm_core.json_files import read_json
from tlm_core.serving import MODEL
from tlm_core.studies.bilstm import load_bilstm
from tlm_core.studies.fit import compare, fit
from tlm_core.studies.lstm_export import INT8, export_lstm, lstm_onnx
from tlm_core.studies.measure import compare_graphs, encoder_onnx, ngram_batches, token_batches
from tlm_core.studies.outputs import speed_in_words, write_outputs
from tlm_core.studies.params import CurveParams, family, linear_seeds, size_name
from tlm_core.studies.plot import Curve, plot
from tlm_core.tasks.metrics import best_of, scores_for, summary
from tlm_core.tasks.task import Task
from tlm_core.training.prepared import Prepared
from tlm_core.training.stage import StageContext

BILSTM = "bilstm"
SPEEDS = {"speed_up": "inference", "speed_up_int8": "int8"}

# (model, number of train rows, seed) → report of `evaluate`. The linear model has a report only for `linear_seeds`.
Reports = Mapping[tuple[str, int, int], Report]


def curve(ctx: StageContext[CurveParams]) -> dict[str, object]:
    """Write `report.json`, `curves.csv`, `plot.svg`, and the export of the best BiLSTM of the largest size.

    Inputs: `task`, `sizes`, `evaluate.{model}.n{size}.s{seed}`, and for the largest size `prepared.{model}.s{seed}`,
    `trained.{model}.s{seed}` and `trained.linear`.
    """
    models, seeds = [*ctx.params.models, LINEAR], ctx.params.seeds
    sizes = read_json(ctx.inputs["sizes"] / "sizes.json")
    used = [size for size in sizes if not size["dropped"]]
    reports = {
        (model, size["rows"], seed): read_json(
            ctx.inputs[f"evaluate.{model}.n{size_name(size['size'])}.s{seed}"] / REPORT
        )
        for model in models
        for size in used
        for seed in (linear_seeds(size["size"], seeds) if model == LINEAR else seeds)
    }
    rows = [size["rows"] for size in used]
    report: Report = {
        "kind": "learning_curve",
        **_bilstm_report([reports[BILSTM, rows[-1], seed] for seed in seeds]),
        "cost": _cost(reports),
        "sizes": rows,
        "dropped": [size for size in sizes if size["dropped"]],
        "models": {model: _model(model, reports, rows, seeds) for model in models},
    }
    best = report["best_seed"]
    prepared = Prepared(ctx.inputs[f"prepared.{BILSTM}.s{best}"])
    model, task = load_bilstm(ctx.inputs[f"trained.{BILSTM}.s{best}"]), Task.read(ctx.inputs["task"])
    int8 = export_lstm(model, prepared, task, ctx.out)
    _add_inference(ctx, report, task)
    report["models"][BILSTM]["int8"] |= int8
    _add_crossings(report, ctx.params.margin)
    report["gain"] = _gain(ctx, report, task, used[-1]["size"])
    report["words"] = f"{words(report)} {report['gain']['words']}"
    _write(ctx.out, report)
    return {**report_meta(report), "words": report["words"]}


def _gain(ctx: StageContext[CurveParams], report: Report, task: Task, size: float) -> Report:
    """Return the result of `gain`: the BiLSTMs of all seeds against the linear models. size: the largest size."""

    def outputs(model: str, seed: int, entry: int) -> Outputs:
        """Return a model's outputs on test. entry: the number in the name of the stored array, such as `test.s0`."""
        folder = ctx.inputs[f"evaluate.{model}.n{size_name(size)}.s{seed}"]
        with np.load(folder / PREDICTIONS) as predictions:
            return predictions[f"test.s{entry}"]

    bilstms = [outputs(BILSTM, seed, seed) for seed in ctx.params.seeds]
    linears = [outputs(LINEAR, seed, 0) for seed in linear_seeds(size, ctx.params.seeds)]
    return gain(task, report, ("the BiLSTM", "the linear model"), bilstms, linears) | {"against": LINEAR}


def _bilstm_report(runs: Sequence[Report]) -> Report:
    """Return one report for all seeds of the BiLSTM at the largest size. runs: the report of each seed."""
    seeds = [run["seeds"][0] for run in runs]
    common = {name: runs[0][name] for name in ("task", "metric", "labels", "majority")}
    best = seeds[best_of([entry["validation"]["value"] for entry in seeds])]
    return {**common, "seeds": seeds, **over_seeds(seeds), "best_seed": best["seed"]}


def _cost(reports: Reports) -> dict[str, dict[str, float]]:
    """Return the cost of each stage, and their `total`. A stage that several models of a `family` share counts once."""
    costs = {}
    for (model, rows, seed), report in reports.items():
        for stage, cost in report["cost"].items():
            if stage != "total":
                owner = model if stage == "finetune" else family(model)
                costs[stage, owner, rows, seed] = {stage: cost}
    return total_cost(list(costs.values()))


def _model(model: str, reports: Reports, sizes: Sequence[int], seeds: Sequence[int]) -> Report:
    """Return `points` (the scores, runs and cost at each size) and `law` (the power law) of one model.

    If all seeds share one linear model, each seed has the run of this model, but the cost includes the model once.
    """
    points = []
    for rows in sizes:
        own = {key: report for key, report in reports.items() if key[:2] == (model, rows)}
        shared = own[model, rows, seeds[0]]
        runs = [own.get((model, rows, seed), shared)["seeds"][0] for seed in seeds]
        names = scores_for(shared["metric"])
        point: Report = {"labels": rows, "mean": {"validation": {}, "test": {}}, "spread": {"test": {}}}
        for name in names:
            over = summary([run["test"][name] for run in runs])
            point["mean"]["test"][name], point["spread"]["test"][name] = over["mean"], over["std"]
            point["mean"]["validation"][name] = summary([run["validation"][name] for run in runs])["mean"]
        point["runs"] = [_run(run, names) for run in runs]
        point["cost"] = _cost(own)["total"]
        points.append(point)
    return {"points": points, "law": _law(points)}


def _run(run: Report, names: Sequence[str]) -> Report:
    """Return the test scores of one seed, and its learning rate `lr` if several settings were tried."""
    scores = {name: run["test"][name] for name in (*names, "value")}
    return {**scores, "lr": run["chosen"]["lr"]} if "tries" in run else scores


def _law(points: Sequence[Report]) -> Report:
    """Return a, b and c of the power law of the mean errors (1 - accuracy), or three times None with a `reason`."""
    try:
        law = fit([p["labels"] for p in points], [1 - p["mean"]["test"]["accuracy"] for p in points])
    except ValueError as error:
        return {"a": None, "b": None, "c": None, "reason": str(error)}
    return {"a": law.a, "b": law.b, "c": law.c}


def _add_crossings(report: Report, margin: float) -> None:
    """Add the comparisons `against` (BiLSTM with each encoder) and `passes_linear` (each model with the linear model).

    For the model `bilstm`, `against` is at the top level of the report. For `bilstm_tlm`, it is in `models.bilstm_tlm`.
    """
    models = report["models"]
    others = [model for model in models if model != LINEAR]
    for lstm in [model for model in others if model.startswith(BILSTM)]:
        against = {model: _against(report, lstm, model, margin) for model in others if not model.startswith(BILSTM)}
        (report if lstm == BILSTM else models[lstm])["against"] = against
    report["passes_linear"] = {model: _passes_linear(report, model) for model in others}


def _against(report: Report, lstm: str, model: str, margin: float) -> Report:
    """Return the result of `compare` for a BiLSTM and an encoder. The keys of SPEEDS are encoder time / BiLSTM time."""
    entry, seconds = report["models"][lstm], report["models"][model]["inference"]["seconds_per_text"]
    speed_up = {name: seconds / entry[key]["seconds_per_text"] for name, key in SPEEDS.items() if key in entry}
    return {**compare(_errors(report, lstm), _errors(report, model), margin=margin), **speed_up}


def _passes_linear(report: Report, model: str) -> Report:
    """Return from how many labels a model is more accurate than the linear model, as measured and by power laws.

    measured: the smallest measured size such that the model is more accurate at this size and at all larger sizes, or
    None. The other keys are those of `compare` with the margin 0.
    """
    measured = None
    sides = zip(*(reversed(report["models"][name]["points"]) for name in (model, LINEAR)), strict=True)
    for own, linear in sides:
        if own["mean"]["test"]["accuracy"] <= linear["mean"]["test"]["accuracy"]:
            break
        measured = own["labels"]
    return {"measured": measured, **compare(_errors(report, model), _errors(report, LINEAR), margin=0.0)}


def _errors(report: Report, model: str) -> list[tuple[float, list[float]]]:
    """Return (number of labels, errors of the runs) for each point of a model. An error is 1 - accuracy."""
    return [(p["labels"], [1 - run["accuracy"] for run in p["runs"]]) for p in report["models"][model]["points"]]


def _add_inference(ctx: StageContext[CurveParams], report: Report, task: Task) -> None:
    """Add `inference`, the size and speed of the ONNX graph of the largest size, to each model. Add `int8` to `bilstm`.

    The graph of `bilstm` has the weights of the best seed. The graphs of the other models have those of the first seed.
    """
    linear = ctx.inputs["trained.linear"]
    graphs, texts = {LINEAR: linear / MODEL}, {LINEAR: ngram_batches(linear, task)}
    for model in map(str, ctx.params.models):
        seed = report["best_seed"] if model == BILSTM else ctx.params.seeds[0]
        trained = ctx.inputs[f"trained.{model}.s{seed}"]
        graphs[model] = ctx.scratch / f"{model}.onnx"
        texts[model] = token_batches(Prepared(ctx.inputs[f"prepared.{model}.s{seed}"]))
        if model.startswith(BILSTM):
            lstm_onnx(load_bilstm(trained), graphs[model])
        else:
            encoder_onnx(trained, graphs[model])
    graphs[INT8], texts[INT8] = ctx.out / INT8, texts[BILSTM]
    measured = compare_graphs(graphs, texts)
    report["models"][BILSTM]["int8"] = measured.pop(INT8)
    for model, figures in measured.items():
        report["models"][model]["inference"] = figures


def words(report: Report) -> str:
    """Return a summary of the report, as a paragraph."""
    last = report["models"][BILSTM]["points"][-1]
    metric, agreement = report["metric"], report["models"][BILSTM]["int8"]["agreement"]
    sentences = [f"With {last['labels']:,} labels the BiLSTM has {_mean(last, metric)} in {metric} on test."]
    sentences += _crossings(report, BILSTM, report["against"])
    for model, entry in report["models"].items():
        if "against" in entry:
            score = _mean(entry["points"][-1], metric)
            sentences.append(f"With the token embeddings of TLM ('{model}') the BiLSTM has {score}.")
            sentences += _crossings(report, model, entry["against"])
    score = _mean(report["models"][LINEAR]["points"][-1], metric)
    sentences.append(f"The linear model has {score}.")
    sentences += [_passing(model, entry) for model, entry in report["passes_linear"].items()]
    sentences.append(f"With 8-bit weights the BiLSTM predicts the same label for {agreement:.1%} of validation texts.")
    sentences += [f"The size of {size['rows']} labels was dropped: {size['dropped']}." for size in report["dropped"]]
    return " ".join(sentences)


def _mean(point: Report, metric: str) -> str:
    mean = point["mean"]["test"][metric]
    return "no score" if mean is None else f"{mean:.4f}"


def _crossings(report: Report, lstm: str, against: Mapping[str, Report]) -> list[str]:
    """Return sentences that compare a BiLSTM with each encoder: accuracy, crossing point and speed."""
    sentences, accuracy = [], report["models"][lstm]["points"][-1]["mean"]["test"]["accuracy"]
    for model, entry in against.items():
        gap = report["models"][model]["points"][-1]["mean"]["test"]["accuracy"] - accuracy
        side = f"{abs(gap):.1%} {'below' if gap > 0 else 'above'}" if round(gap, 3) else "within 0.1% of"
        sentences.append(f"Its accuracy is {side} that of '{model}'.")
        if entry["labels"] is None:
            sentences.append(f"The crossing point is unknown ({entry['reason']}).")
        else:
            sentences.append(
                f"By the fitted power laws, it is within {entry['margin']:.1%} of '{model}' from about "
                f"{_about(entry['labels'])} labels."
            )
            if entry["interval"] is not None:
                sentences.append(f"The 90% interval of this number is {_interval(entry['interval'])}.")
            if "note" in entry:
                sentences.append(f"The crossing point is {entry['note']}.")
        speed = f"It {speed_in_words(entry['speed_up'])} on one core"
        if "speed_up_int8" in entry:
            speed += f"; with 8-bit weights it {speed_in_words(entry['speed_up_int8'])}"
        sentences.append(f"{speed}.")
    return sentences


def _passing(model: str, entry: Report) -> str:
    """Return a sentence on the size from which a model is more accurate than the linear model."""
    if entry["measured"] is None:
        text = f"At the largest size '{model}' is not more accurate than the linear model"
    else:
        text = f"'{model}' is more accurate than the linear model from the measured size {entry['measured']:,} on"
    if entry["labels"] is None:
        return f"{text}; the fitted crossing point is unknown ({entry['reason']})."
    text += f"; by the fitted power laws from about {_about(entry['labels'])} labels"
    if entry["interval"] is not None:
        text += f" (90% interval {_interval(entry['interval'])})"
    return f"{text}. The crossing point is {entry['note']}." if "note" in entry else f"{text}."


def _interval(interval: Sequence[float | None]) -> str:
    low, high = ("beyond the searched range" if end is None else _about(end) for end in interval)
    return f"{low} to {high}"


def _about(count: float) -> str:
    """Return a count with two significant digits, such as "1,200", because a fit to a few points is imprecise."""
    return f"{float(f'{count:.1e}'):,.0f}"


def _write(out: Path, report: Report) -> None:
    names = scores_for(report["metric"])
    rows, curves = [], []
    for model, figures in report["models"].items():
        points = []
        for point in figures["points"]:
            for entry, run in zip(report["seeds"], point["runs"], strict=True):
                rows.append([model, point["labels"], entry["seed"], *(run[name] for name in names)])
            mean, spread = (point[over]["test"]["accuracy"] for over in ("mean", "spread"))
            points.append((point["labels"], mean, spread))
        curves.append(Curve(model, points))
    title = f"{report['task']}: accuracy on test by number of labels"
    drawing = plot(curves, title=title, x="labeled texts", y="accuracy", log_x=True)
    write_outputs(out, report, "curves.csv", [("model", "labels", "seed", *names), *rows], drawing)
