"""Table rows and sentences that present a report. A row has the scores of one model, and the files that hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlm_core.tasks.limits import ROWS_TO_SCORE
from tlm_core.tasks.metrics import METRICS
from tlm_core.wording import counted

REPORT, PREDICTIONS = "report.json", "predictions.npz"  # files of the artifact `evaluate`
MAJORITY = "majority"
ENCODER = "encoder"
STOCK = "stock"  # the encoder in the folder `model/`, if the job has other seeds too
BEHIND = "behind"  # key for the scores of encoder and linear model, if training ended early (`joint.stop_if_behind`)
# Key of the report and of each seed: whether the returned model, and the seed's encoder, also learned from validation.
REFIT = "refit"
LINEAR_NODES = {"linear": "baseline", "self_trained": "self_train"}  # linear model → the node that fits it
_LINEAR = {"linear": "the linear model", "self_trained": "the self-trained linear model"}
_COMPOSED = {
    "ensemble": "the mean of the encoders",
    "combined": "the combination",
    "weighted": "the combination with fitted weights",
}

Report = Mapping[str, Any]
Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class ModelRow:
    """The scores of one model on a split."""

    name: str  # majority, linear, self_trained, encoder, stock, ensemble, combined, or the name in a study
    mean: Scores
    spread: Scores  # None if there is only one run
    file: str = ""  # the files of the job that hold this model, and its seeds; empty if no file holds it


def model_title(name: str) -> str:
    """Return the name of a model for readers, such as "self-trained"."""
    return name.replace("_", "-")


def model_in_words(name: str) -> str:
    """Return the name of a model for sentences, such as "the linear model"."""
    return {**_LINEAR, **_COMPOSED}.get(name, f"the {name}")


def model_rows(report: Report) -> list[ModelRow]:
    """Return the models of a report with their test scores, from simple to complex: first the majority class, if any.

    For a learning curve, the scores are those at the largest size. For ticket sharing, they are means over the tasks.
    """
    if "average" in report:
        means = report["average"].items()
        return [ModelRow(name, {"value": over["mean"]}, {"value": over["std"]}) for name, over in means]
    rows = []
    if majority := report.get("majority", {}).get("test"):
        mean = {name: value for name, value in majority.items() if name in METRICS}
        clean = majority.get("deduplicated")
        rows.append(ModelRow(MAJORITY, mean | ({"deduplicated": clean["value"]} if clean else {}), {}))
    models = report.get("models") or {"model": report}
    for name, model in models.items():
        scored = model["points"][-1] if "points" in model else model
        rows.append(ModelRow(name, scored["mean"]["test"], scored["spread"]["test"], _files(report, name)))
    return rows


def _files(report: Report, model: str) -> str:
    """Return the files of the job that hold a model, with its seeds, such as "model.onnx and model/, seed 1"."""
    if "returned" not in report:
        return ""
    returned, alone = report["returned"], len(report["seeds"]) == 1
    files = ["model.onnx"] if model == returned["model"] else []
    files += ["model/"] if model == STOCK or (model == ENCODER and alone) else []
    if not files or model in _LINEAR:
        return "".join(files)
    seeds = returned["seeds"] if files[0] == "model.onnx" else [report["best_seed"]]
    return f"{' and '.join(files)}, {_seeds(seeds)}"


def sentences(report: Report) -> list[str]:
    """Return sentences on which model a job returns, why, and whether this model is better than the linear model.

    If a study exports no encoder, return only the warning of `few_rows`.
    """
    if "returned" not in report:
        return few_rows(report)
    gain, reason = report.get("gain", {}).get("words"), report["returned"]["reason"]
    several = len(report["seeds"]) > 1
    ended = [entry for entry in report["seeds"] if BEHIND in entry]
    return [
        headline(report),
        *(behind_in_words(entry[BEHIND], f" of seed {entry['seed']}" if several else "") for entry in ended),
        *([reason] if reason not in (gain or "") else []),
        *([gain] if gain and gain not in report.get("words", "") else []),
    ]


def averaged_seeds(seeds: Sequence[Report]) -> list[int]:
    """Return the seeds that influence means, choices and the returned model. seeds: entries of `seeds` in a report.

    These are the seeds whose training ran to the end, or all seeds if all ended early.
    """
    return [entry["seed"] for entry in seeds if BEHIND not in entry] or [entry["seed"] for entry in seeds]


def training_time(report: Report) -> str:
    """Return the training time in words, such as "42 seconds of training": the sum over all stages and seeds.

    For a `train` job with several seeds, the text also has the elapsed time if all seeds train at the same time. For a
    study, this time is unknown, because the report states the cost of a seed for only one of the study's models.
    """
    total = report["cost"].get("total", {}).get("seconds")
    if total is None:
        return "training time unknown"
    seeds = [sum(stage["seconds"] for stage in entry.get("cost", {}).values()) for entry in report.get("seeds", ())]
    words = f"{time_in_words(total)} of training"
    if "kind" in report or len(seeds) < 2 or not any(seeds):
        return words
    together = total - sum(seeds) + max(seeds)
    return f"{words}, {together / 60:.1f} minutes on the clock if the {len(seeds)} seeds train side by side"


def time_in_words(seconds: float) -> str:
    """Return a duration as "3.5 minutes" or, below one minute, as "42 seconds"."""
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else counted(round(seconds), "second")


def nodes_behind(linear: str) -> list[str]:
    """Return the nodes that a linear model needs: `["baseline"]`, or `["baseline", "self_train"]` if self-trained."""
    return list(LINEAR_NODES.values())[: list(LINEAR_NODES).index(linear) + 1]


def returned_seconds(report: Report) -> float:
    """Return the seconds of training that the returned model needed.

    A linear model needs no encoder, but a self-trained model needs the linear model that labels its pieces. Encoders
    need all shared stages and their own seeds.
    """
    model, cost = report["returned"]["model"], report["cost"]
    if model in LINEAR_NODES:
        return float(sum(cost[node]["seconds"] for node in nodes_behind(model) if node in cost))
    unused = [entry for entry in report["seeds"] if entry["seed"] not in report["returned"]["seeds"]]
    return float(cost["total"]["seconds"] - sum(s["seconds"] for entry in unused for s in entry["cost"].values()))


def behind_in_words(scores: Mapping[str, float], of: str = "") -> str:
    """Return why training ended early. scores: of `encoder` and `linear`, on validation. of: "" or " of seed 1"."""
    return (
        f"Training{of} ended at half the joint budget, because the encoder has {scores['encoder']:.3f} on validation "
        f"and the linear model {scores['linear']:.3f} (joint.stop_if_behind)."
    )


def learned_again(report: Report) -> bool:
    """Return whether the refit trained any part of the returned model again. A refit trains all linear models."""
    model, seeds = report["returned"]["model"], report["returned"]["seeds"]
    encoders = [entry for entry in report["seeds"] if entry["seed"] in seeds]
    return model in _LINEAR or model == "combined" or any(entry[REFIT] for entry in encoders)


def refit_in_words(report: Report) -> str:
    """Return sentences on which models the refit trained again, and why it copied the others; "" without a refit."""
    refits = [entry for entry in report["seeds"] if REFIT in entry]
    again = [entry["seed"] for entry in refits if entry[REFIT]]
    early = [entry["seed"] for entry in refits if not entry[REFIT] and BEHIND in entry]
    untouched = [entry["seed"] for entry in refits if not entry[REFIT] and BEHIND not in entry]
    copied = (early, "training ended early"), (untouched, "finetuning brought no gain on validation")
    words = [f"It copied {_encoders(seeds)}, because {reason}." for seeds, reason in copied if seeds]
    if not words:
        trained = "After all choices, the refit trained each model again, on train and validation."
        return trained if report.get(REFIT) else ""
    names = [*(_LINEAR[name] for name in report["models"] if name in _LINEAR), *([_encoders(again)] if again else [])]
    return " ".join([
        f"After all choices, the refit trained these models again, on train and validation: {', '.join(names)}.", *words
    ])  # fmt: skip


def headline(report: Report) -> str:
    """Return sentences that name the model in model.onnx and its test score, with the warning of `few_rows`."""
    metric = report["metric"]
    value = report["returned"]["scores"]["test"][metric]
    score = "no test score" if value is None else f"{METRICS[metric].title} {value:.4f} on test"
    return " ".join([f"model.onnx is {returned_model(report)}: {score}.", *few_rows(report)])


def few_rows(report: Report) -> list[str]:
    """Return a list with a warning if test is too small for precise scores, else an empty list."""
    rows = (report.get("seeds") or [{}])[0].get("test", {}).get("rows", ROWS_TO_SCORE)
    return [f"Test has only {counted(rows, 'row')}, so its scores are imprecise."] if rows < ROWS_TO_SCORE else []


def returned_model(report: Report) -> str:
    """Return the name of the returned model, with the seeds of its encoders. Linear models do not depend on seeds."""
    model, seeds = str(report["returned"]["model"]), report["returned"]["seeds"]
    if model in _LINEAR:
        return _LINEAR[model]
    linear = [_LINEAR[name] for name in report["models"] if name in _LINEAR]
    encoders = ("the mean of " if len(seeds) > 1 else "") + _encoders(seeds)
    return encoders + (f" combined with {linear[-1]}" if model == "combined" else "")


def _encoders(seeds: Sequence[int]) -> str:
    return f"the encoder{'' if len(seeds) == 1 else 's'} of {_seeds(seeds)}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
