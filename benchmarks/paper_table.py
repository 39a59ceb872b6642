"""Repeat rows of the paper's table of results on the service: `python -m benchmarks.paper_table --rows small`.

paper_table.yaml defines the rows. TLM_PROFILE or TLM_URL selects the service; without them, it is the local stack. To
resume, run the same command again: it waits for the jobs that it has already submitted. The command writes the scores
of all rows to build/paper_table.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from rich.console import Console

from benchmarks.report import remark
from benchmarks.shared import ROOT
from benchmarks.stack import finish, submit
from tlm_client.client import TLMClient
from tlm_client.display import Display
from tlm_client.models import own_client
from tlm_core.errors import NotFound, TLMError
from tlm_core.jobs.spec import JobSpec
from tlm_core.json_files import read_json
from tlm_core.tasks.known import KNOWN_TASKS, KnownTask
from tlm_core.training.recipe import RecipeName, Scale
from tlm_core.wire import JsonObject

SEEDS = (0, 1, 2)  # the paper also averages over three seeds
WARMUP = 10_000  # warm-up steps of the paper's stage 1
RECIPES: tuple[RecipeName, ...] = ("paper", "fast")


@dataclass(frozen=True)
class Row:
    """A row of paper_table.yaml, which explains the fields."""

    task: str
    scale: Scale
    expected: float
    tolerance: float
    external: str | None
    top_k: int
    rho1: int
    rho2: int
    steps: int
    batch: int
    gpus: int
    paper_hours: float
    fast_hours: float
    length: int = 128
    passage_length: int | None = None

    @property
    def name(self) -> str:
        return f"{self.task}-{self.scale}"

    @property
    def known(self) -> KnownTask:
        return KNOWN_TASKS[self.task]

    def hours(self, recipe: RecipeName) -> float:
        """Return the estimated H100-hours of the row's job."""
        return self.paper_hours if recipe == "paper" else self.fast_hours

    def dataset(self, corpus: str | None) -> str:
        """Return the name of the row's dataset. If `corpus` is None, the dataset includes the authors' passages."""
        part = "own" if corpus else str(self.external).partition("_")[0]
        return f"paper-{self.task}-{part}"

    def spec(self, recipe: RecipeName, corpus: str | None) -> JobSpec:
        """Return the request for the row's job. Recipe `paper` uses the paper's schedule."""
        overrides: dict[str, object] = {"selection.top_k": self.top_k}
        if corpus is None:
            overrides["selection.selector"] = "given"
        if recipe == "paper":
            overrides |= {
                "joint.budget.steps": self.steps,
                "joint.batch_rows": self.batch * (self.passage_length or self.length) // self.length,
                "joint.task_batch": self.batch,
                "joint.rho1": self.rho1,
                "joint.rho2": self.rho2,
                "joint.optimizer.warmup": WARMUP / self.steps,
                "model.max_length": self.length,
            }
        return JobSpec(
            name=f"paper table: {self.name}, {recipe}",
            dataset=self.dataset(corpus),
            corpus=corpus,
            scale=self.scale,
            recipe=recipe,
            seeds=SEEDS,
            overrides=overrides,
            workers=self.gpus,
        )


@dataclass(frozen=True)
class Outcome:
    """The test score of a row's encoders and its spread in percent, or the reason why there is no score."""

    job: str = ""
    score: float | None = None
    spread: float | None = None
    gpu_hours: float = 0.0
    reason: str = ""

    @classmethod
    def of(cls, job: str, report: JsonObject) -> Outcome:
        encoder, metric = report["models"]["encoder"], report["metric"]
        spread = encoder["spread"]["test"][metric]
        return cls(
            job,
            round(100 * encoder["mean"]["test"][metric], 2),
            None if spread is None else round(100 * spread, 2),
            round(report["cost"]["total"]["gpu_seconds"] / 3600, 2),
        )

    def within(self, row: Row) -> bool:
        return self.score is not None and self.score >= row.expected - row.tolerance

    def cell(self, row: Row) -> str:
        if self.score is None:
            return self.reason or "–"
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        hours = f", {self.gpu_hours:g} GPU-hours" if self.gpu_hours else ""
        verdict = "" if self.within(row) else ", too low"
        return f"{self.score:.2f}{spread} ({self.score - row.expected:+.2f}{verdict}{hours})"


def read_rows() -> list[Row]:
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]]


def chosen(rows: Sequence[Row], names: Sequence[str], corpus: str | None = None) -> list[Row]:
    """Return the rows whose scale, task or name (TASK-SCALE) is in `names`.

    Raises NotFound for a name without rows, and if `corpus` is None but a row needs a corpus. Without this check, the
    error would appear only after days, when the other rows have ended.
    """
    for name in names:
        if not any(name in (row.scale, row.task, row.name) for row in rows):
            raise NotFound(f"Unknown row '{name}'. Name a scale, a task or TASK-SCALE, such as {rows[0].name}.")
    named = [row for row in rows if {row.scale, row.task, row.name} & set(names)]
    if missing := [row.name for row in named if not (corpus or row.external)]:
        others = " ".join(row.name for row in named if row.external)
        instead = f", or run the other rows: --rows {others}" if others else ""
        raise NotFound(
            f"paper_table.yaml has no selection for {' and '.join(missing)}. Load a corpus and name it with "
            f"--corpus{instead}."
        )
    return named


class Outcomes:
    """The outcomes of all rows so far. `folder` contains them as paper_table.json and as paper_table.md."""

    def __init__(self, folder: Path) -> None:
        self._store, self._table = folder / "paper_table.json", folder / "paper_table.md"
        stored = read_json(self._store) if self._store.exists() else {}
        self._of = {name: Outcome(**fields) for name, fields in stored.items()}

    def of(self, row: Row, recipe: str) -> Outcome:
        return self._of.get(f"{row.name} {recipe}", Outcome())

    def record(self, row: Row, recipe: str, outcome: Outcome) -> None:
        remark(f"{row.name} {recipe}: {outcome.cell(row)}")
        self._of[f"{row.name} {recipe}"] = outcome
        self._store.parent.mkdir(parents=True, exist_ok=True)
        content = {name: asdict(of_row) for name, of_row in self._of.items()}
        self._store.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        self._table.write_text(self.table(), encoding="utf-8")

    @contextmanager
    def reason_of(self, row: Row, recipe: str, job: str = "") -> Iterator[None]:
        """If the block raises a TLMError, record its message as the outcome of the row. job: the row's job."""
        try:
            yield
        except TLMError as error:
            self.record(row, recipe, Outcome(job, reason=error.message))

    def table(self) -> str:
        """Return all rows as Markdown: estimated hours, the paper's scores, and ours with the difference."""
        hours = f"H100-hours, estimated ({', '.join(RECIPES)})"
        header = ["task", "scale", hours, "arXiv 2111.04130", *RECIPES]
        lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for row in read_rows():
            cells = " | ".join(self.of(row, recipe).cell(row) for recipe in RECIPES)
            expected = f"{row.expected:.2f} (tolerance {row.tolerance})"
            hours = ", ".join(f"{row.hours(recipe):g}" for recipe in RECIPES)
            lines.append(f"| {row.known.title} | {row.scale} | {hours} | {expected} | {cells} |")
        return "\n".join([*lines, ""])


@dataclass(frozen=True)
class Runner:
    """Runs rows on a service.

    corpus: corpus to select from; None: use the selection of the paper's authors. folder: folder with the datasets as
    TASK/train.csv, dev.csv and test.csv; None: the Hugging Face hub.
    """

    client: TLMClient
    recipe: RecipeName
    outcomes: Outcomes
    corpus: str | None = None
    folder: Path | None = None

    def add_dataset(self, row: Row) -> None:
        """Add the row's dataset unless the service has it."""
        name, options = row.dataset(self.corpus), {"metric": row.known.metric, "name": row.known.title}
        external = None if self.corpus else row.external
        try:
            self.client.dataset(name)
        except NotFound:
            if self.folder is None:
                self.client.add_hub_dataset(name, row.known.hub_id, options, selection=external)
                return
            files = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
            files |= {"selection": external} if external else {}
            self.client.add_dataset(
                name, {part: self.folder / row.task / file for part, file in files.items()}, options
            )

    def refused(self, rows: Sequence[Row]) -> list[Row]:
        """Let the service validate the jobs of the rows, without submitting them. Return the rows with refused jobs."""
        refused = []
        for row in rows:
            try:
                self.add_dataset(row)
                estimate = self.client.dry_run(row.spec(self.recipe, self.corpus)).estimate
            except TLMError as error:
                remark(f"{row.name} {self.recipe}: {error.message}")
                refused.append(row)
                continue
            flops = "an unknown number of" if estimate.flops is None else f"{estimate.flops:.2g}"
            hours = f"about {row.hours(self.recipe):g} H100-hours"
            remark(f"{row.name} {self.recipe}: valid, {flops} FLOPs on {row.gpus} GPUs, {hours}")
        return refused

    def run(self, rows: Sequence[Row], display: Display) -> None:
        """Submit the jobs of all rows, then record their outcomes. The outcome of a failed job is its error message."""
        jobs = {}
        for row in rows:
            with self.outcomes.reason_of(row, self.recipe):
                self.add_dataset(row)
                jobs[row] = submit(self.client, row.spec(self.recipe, self.corpus)).id
        for row, job_id in jobs.items():
            with self.outcomes.reason_of(row, self.recipe, job_id):
                finish(self.client, job_id, f"{row.name} {self.recipe}", display)
                self.outcomes.record(row, self.recipe, Outcome.of(job_id, self.client.report(job_id)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", required=True, help="scales, tasks or TASK-SCALE")
    parser.add_argument("--recipe", choices=RECIPES, default="paper")
    parser.add_argument("--corpus", help="select from this corpus of the service, in place of the release's selection")
    parser.add_argument("--data", type=Path, help="folder with TASK/train.csv, dev.csv, test.csv, in place of the hub")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder of the table")
    parser.add_argument("--dry-run", action="store_true", help="let the service validate the jobs, and submit none")
    options = parser.parse_args(arguments)
    outcomes, console = Outcomes(options.out), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        rows = chosen(read_rows(), options.rows, options.corpus)
        with own_client() as client, Display(console) as display:
            runner = Runner(client, options.recipe, outcomes, options.corpus, options.data)
            if options.dry_run:
                return 1 if runner.refused(rows) else 0
            runner.run(rows, display)
    except TLMError as error:
        remark(error.message)
        return 2
    print(outcomes.table(), end="")
    return 0 if all(outcomes.of(row, options.recipe).within(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
