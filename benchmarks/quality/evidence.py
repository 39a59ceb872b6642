"""The evidence for the method: one table of tasks and models, with the claims of the paper.

`make evidence-runs` trains what records.jsonl lacks, seed by seed, and appends one line for each run. `make evidence`
writes the table and a plot of scores over FLOPs into docs/results.md. It writes the main columns into README.md.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from scipy.stats import ttest_1samp  # type: ignore[import-untyped, unused-ignore]

from benchmarks.quality import fasttext_model, linear, pretrained
from benchmarks.quality.data import split_of, text_folder
from benchmarks.quality.runs import TASK_ONLY, append_line, read_lines, report_of_run
from benchmarks.report import remark
from benchmarks.shared import ROOT
from tlm_core.errors import MissingDependency
from tlm_core.json_files import read_json
from tlm_core.studies.plot import Curve, plot
from tlm_core.training.recipe import Recipe, Scale, resolve

RECORDS = Path(__file__).with_name("records.jsonl")
PLOT = ROOT / "docs/plots/score-over-flops.svg"
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
NAMES = {
    "libraries": "libraries",
    "acl_arc": "ACL-ARC",
    "sciie": "SciERC",
    "sci_cite": "SciCite",
    "csabstruct": "CSAbstruct",
}
LONG = {"finetune.max_steps_after_joint": None}  # finetuning of at least five epochs
PLAIN = {"joint.bag_of_words": False, **LONG}
ALONE = {"self_training.amounts": [], **PLAIN}
TLM = "TLM (BM25)"
SCALE: Scale = "quick"
# Arm (compared model) → changes of recipe `fast` at SCALE. The score is that of the encoder, which learned from train.
TRAINED: dict[str, dict[str, Any]] = {
    "task only": TASK_ONLY,
    "MLM on task text": {"selection.selector": "none", **PLAIN},
    "TLM, random passages": {"selection.selector": "random", **ALONE},
    "TLM, two stages": {"joint.task_loss": False, **ALONE},
    TLM: ALONE,
    "+ self-training": PLAIN,
    "+ bag of words": LONG,
    "+ at most 500 steps": {},
}
FROM_TRAIN = {"refit": False}
# Jobs of recipe `fast`. The score is that of the returned model, which learned from train and validation.
# Scale `instant` returns the service's linear model. The others have MEMBERS seeds.
INSTANT, RETURNED, RETURNED_TINY = (f"returned model, scale `{scale}`" for scale in ("instant", SCALE, "tiny"))
JOBS: dict[str, Scale] = {RETURNED: SCALE, RETURNED_TINY: "tiny"}
MEMBERS = 3
LINEAR, LINEAR_BOTH = "linear model", "linear model, with validation"  # fitted on train; on train and validation
FASTTEXT = "fastText"
FIXED = ("majority class", LINEAR, LINEAR_BOTH, FASTTEXT, INSTANT)  # the same for each seed
PRETRAINED, PRETRAINED_BOTH = "finetuned MiniLM", "finetuned MiniLM, with validation"
BUDGETS = {f"{TLM}, {times}× tokens": times for times in (3, 10, 30)}  # in the joint stage; only in the plot
ROWS = ("majority class", LINEAR, LINEAR_BOTH, FASTTEXT, *TRAINED, INSTANT, *JOBS, PRETRAINED, PRETRAINED_BOTH)
SUMMARY = ("majority class", LINEAR, LINEAR_BOTH, "task only", TLM, INSTANT, RETURNED, RETURNED_TINY)
# The README also names the service's own linear model, so its table has other names for the baseline.
_README_NAMES = {LINEAR: "external baseline", LINEAR_BOTH: "external baseline, with validation"}
CLAIMS = (
    (TLM, "TLM, random passages"),
    (TLM, "TLM, two stages"),
    (TLM, "task only"),
    (TLM, LINEAR),
    *((job, other) for job in JOBS for other in (LINEAR, LINEAR_BOTH, INSTANT, PRETRAINED_BOTH)),
)
LEVEL, SEEDS = 0.05, 5
SPLITS = 10  # other random splits of a task
MARGIN = 0.01  # the table counts the splits in which the returned model is worse by more than this
SPLIT_ARMS = (LINEAR, LINEAR_BOTH, INSTANT, RETURNED)
_linear = cache(linear.evaluate)  # for the two rows of the linear model in the table


@dataclass(frozen=True)
class Record:
    """Macro-F1 of one run on validation and test. Machines had different loads, so no table shows `seconds`."""

    task: str
    arm: str  # the compared model
    seed: int | None  # None if all seeds give the same model
    validation: float | None
    test: float
    seconds: float | None  # of training; None if they were not measured, for example because the run was paused
    flops: float = 0.0  # of training
    interval: Sequence[float] | None = None  # 95 % bootstrap interval of `test`


def read_records() -> list[Record]:
    """Return the last record of each task, arm and seed."""
    records = [Record(**values) for values in read_lines(RECORDS)]
    return list({(record.task, record.arm, record.seed): record for record in records}.values())


def run(tasks: Sequence[str], seeds: int, arms: Sequence[str]) -> None:
    """Do all runs without a record, seed by seed, and append their records. The jobs with several seeds come last."""
    for task in tasks:
        for arm in FIXED:
            if arm in arms and not _has(task, arm, None):
                try:
                    append_line(RECORDS, asdict(_fixed(task, arm)))
                except MissingDependency as error:
                    remark(f"{task}, {arm} is left out. {error}")
    single = (*TRAINED, *BUDGETS, PRETRAINED, PRETRAINED_BOTH)
    runs = [(task, arm, seed, [seed]) for seed in range(seeds) for task in tasks for arm in single]
    for seed in range(seeds if seeds > MEMBERS else 1):  # with MEMBERS seeds or fewer, all jobs have equal seeds
        members = sorted((seed + number) % max(seeds, MEMBERS) for number in range(MEMBERS))
        runs += [(task, job, seed, members) for task in tasks for job in JOBS]
    for task, arm, seed, members in runs:
        if arm in arms and not _has(task, arm, seed):
            remark(f"{task}, {arm}, seeds {members}")
            append_line(RECORDS, asdict(_trained(task, arm, seed, members)))


def _has(task: str, arm: str, seed: int | None) -> bool:
    return any((record.task, record.arm, record.seed) == (task, arm, seed) for record in read_records())


def _fixed(task: str, arm: str) -> Record:
    folder, start = text_folder(task), time.monotonic()
    if arm == INSTANT:
        return _trained(task, arm, None, [0])
    if arm == FASTTEXT:
        validation, test = fasttext_model.evaluate(folder)
        return Record(task, arm, None, validation, test, time.monotonic() - start)
    if arm in (LINEAR, LINEAR_BOTH):
        result = _linear(folder)
        scores = result["train" if arm == LINEAR else "train_and_validation"]
        seconds = result["tuning_seconds"]
        return Record(task, arm, None, None, scores["macro_f1"], seconds, interval=scores["interval"])
    train, test_rows = (linear.read_rows(folder / f"{split}.jsonl") for split in ("train", "test"))
    return Record(task, arm, None, None, linear.majority(train, test_rows), 0.0)


def _trained(task: str, arm: str, seed: int | None, members: Sequence[int]) -> Record:
    """Train with the seeds `members`. Return the record of the encoder, or of the returned model for INSTANT and JOBS.

    Nodes that another arm has already run do not run again.
    """
    report = read_json(report_of_run(task, arm, _recipe(task, arm), members) / "report.json")
    mean = report["mean"] if arm in (INSTANT, *JOBS) else report["models"]["encoder"]["mean"]
    cost, scores = report["cost"]["total"], [mean[split]["macro_f1"] for split in ("validation", "test")]
    return Record(task, arm, seed, *scores, seconds=cost["seconds"], flops=cost["flops"])


def _recipe(task: str, arm: str) -> Recipe:
    if arm in (PRETRAINED, PRETRAINED_BOTH):
        return resolve("fast", "tiny", {**pretrained.tuned(task), "refit": arm == PRETRAINED_BOTH})
    if arm in BUDGETS:
        tokens = resolve("fast", SCALE).joint.budget.amount
        changes = {**TRAINED[TLM], **FROM_TRAIN, "joint.budget.tokens": int(tokens * BUDGETS[arm])}
        return resolve("fast", SCALE, changes)
    if arm == INSTANT:
        return resolve("fast", "instant")
    return resolve("fast", JOBS[arm]) if arm in JOBS else resolve("fast", SCALE, {**TRAINED[arm], **FROM_TRAIN})


def table(records: Sequence[Record]) -> str:
    """Return the table of all tasks and models with their cost, and the claims of the paper, as Markdown."""
    rows = [[arm, *(_cell(_of(records, task, arm)) for task in NAMES), _cost(records, arm)] for arm in ROWS]
    of_seeds, of_fixed = (
        [
            [f"{first} > {second}", *(_claim(records, task, first, second) for task in NAMES)]
            for first, second in CLAIMS
            if (second in FIXED) == fixed
        ]
        for fixed in (False, True)
    )
    intervals = [
        [f"95 % interval of the {arm}", *(_interval(_of(records, task, arm)) for task in NAMES)]
        for arm in (LINEAR, LINEAR_BOTH)
    ]
    losses = f"number of splits in which `{SCALE}` is more than {MARGIN:g} below this model"
    header = ["task", "splits", *SPLIT_ARMS, losses]
    parts = [
        _markdown(["model", *NAMES.values(), "FLOPs of a run"], rows),
        "Differences between models with several seeds: the mean over the seeds, and the result of a paired t-test:",
        _markdown(["claim", *NAMES.values()], of_seeds),
        "Differences to a model with one score: the mean over the seeds ± the standard deviation. There is no t-test,\n"
        "because one score has no spread over seeds. The last two rows show the noise of the test rows:",
        _markdown(["claim", *NAMES.values()], of_fixed + intervals),
    ]
    if splits := _split_rows(records):
        parts += ["Mean macro-F1 on test over other random splits:", _markdown(header, splits)]
    return "\n\n".join(parts)


def _split_rows(records: Sequence[Record]) -> list[list[str]]:
    """Return a row for each task that has splits with records of all arms: task, number of splits, mean of each arm.

    The last cell has for each other arm the number of splits in which this arm beats `RETURNED` by more than `MARGIN`,
    such as "linear model: 4; …".
    """
    rows = []
    for task, name in NAMES.items():
        cells = [[_of(records, split_of(task, number), arm) for arm in SPLIT_ARMS] for number in range(SPLITS)]
        complete = [[of_arm[0].test for of_arm in of_split] for of_split in cells if all(of_split)]
        if complete:
            means = [f"{fmean(scores):.3f}" for scores in zip(*complete, strict=True)]
            lost = [
                f"{arm}: {sum(rivals[place] - returned > MARGIN for *rivals, returned in complete)}"
                for place, arm in enumerate(SPLIT_ARMS[:-1])
            ]
            rows.append([name, str(len(complete)), *means, "; ".join(lost)])
    return rows


def summary(records: Sequence[Record]) -> str:
    """Return the table of the README as Markdown: test scores, a row for each task. The best scores are bold."""
    rows = []
    for task, name in NAMES.items():
        cells = [_of(records, task, arm) for arm in SUMMARY]
        means = [fmean(record.test for record in cell) if cell else -1.0 for cell in cells]
        shown = [
            f"**{_cell(cell)}**" if 0 <= mean == max(means) else _cell(cell)
            for cell, mean in zip(cells, means, strict=True)
        ]
        rows.append([name, *shown])
    return _markdown(["task", *(_README_NAMES.get(arm, arm) for arm in SUMMARY)], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _of(records: Sequence[Record], task: str, arm: str) -> list[Record]:
    return [record for record in records if (record.task, record.arm) == (task, arm)]


def _cell(records: Sequence[Record]) -> str:
    scores = [record.test for record in records]
    if not scores:
        return "–"
    if records[0].seed is None:
        return f"{scores[0]:.3f}"
    return f"{fmean(scores):.3f}" + (f" ± {stdev(scores):.3f} ({len(scores)})" if len(scores) > 1 else " (1)")


def _cost(records: Sequence[Record], arm: str) -> str:
    """Return the mean FLOPs of a run, over tasks and seeds. Return a dash if no run has FLOPs, as for libraries."""
    flops = [r.flops for task in NAMES for r in _of(records, task, arm) if r.flops]  # without other splits
    return f"{fmean(flops):.1e}" if flops else "–"


def _interval(records: Sequence[Record]) -> str:
    return " to ".join(f"{bound:.3f}" for record in records for bound in record.interval or ()) or "–"


def _claim(records: Sequence[Record], task: str, first: str, second: str) -> str:
    """Return the mean difference over the seeds of both arms with a verdict: `+0.021, confirmed (p < 0.01, 5 seeds)`.

    If `second` has one score for all seeds, compare this score with each seed of `first`, without a verdict. A t-test
    over seeds would treat the score as exact, but the score depends on the test rows.
    """
    scores, rivals = ({r.seed: r.test for r in _of(records, task, arm)} for arm in (first, second))
    if second in FIXED and rivals:
        rivals = dict.fromkeys(scores, rivals[None])
    differences = [scores[seed] - rivals[seed] for seed in scores.keys() & rivals.keys()]
    if len(differences) < 2:
        return "–"
    if len(set(differences)) == 1:  # such as a linear model that all jobs return
        return f"{differences[0]:+.3f}, the same with each of {len(differences)} seeds"
    if second in FIXED:
        return f"{fmean(differences):+.3f} ± {stdev(differences):.3f}, {len(differences)} seeds"
    p = float(ttest_1samp(differences, 0.0).pvalue)
    verdict: Literal["confirmed", "refuted", "open"] = "open"
    if p < LEVEL:
        verdict = "confirmed" if fmean(differences) > 0 else "refuted"
    probability = "p < 0.01" if p < 0.01 else f"p = {p:.2f}"
    return f"{fmean(differences):+.3f}, {verdict} ({probability}, {len(differences)} seeds)"


def plot_of(records: Sequence[Record]) -> str:
    """Return a plot of test scores over the FLOPs of training, at several budgets; "" if no task has two points."""
    curves = []
    for task, name in NAMES.items():
        of_task = [_of(records, task, arm) for arm in (TLM, *BUDGETS)]
        points = [
            (fmean(r.flops for r in of_arm), fmean(scores), stdev(scores) if len(scores) > 1 else None)
            for of_arm in of_task
            if (scores := [r.test for r in of_arm])
        ]
        if len(points) > 1:
            curves.append(Curve(name, points))
    return plot(
        curves, title="TLM with more tokens in the joint stage", x="FLOPs of training", y="macro-F1 on test", log_x=True
    )


def write_table(text: str, page: Path) -> None:
    """Replace the text between BEGIN and END in a page."""
    content = page.read_text(encoding="utf-8")
    marked = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    page.write_text(marked.sub(lambda _: f"{BEGIN}\n{text}\n{END}", content), encoding="utf-8")


PAGES = {ROOT / "docs/results.md": table, ROOT / "README.md": summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "splits", "table"], help="splits: runs on other random splits")
    command = parser.parse_args().command
    if command == "run":
        run(list(NAMES), SEEDS, (*ROWS, *BUDGETS))
        return
    if command == "splits":
        for number in range(SPLITS):
            run([split_of(task, number) for task in NAMES], 1, SPLIT_ARMS)
        return
    for page, rendered in PAGES.items():
        write_table(rendered(read_records()), page)
    if drawing := plot_of(read_records()):
        PLOT.write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()
