"""The table of results comes from the records of the runs, and the pages show it."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.quality import data, evidence
from benchmarks.quality.data import split_of, text_folder
from benchmarks.quality.evidence import (
    INSTANT,
    LINEAR,
    LINEAR_BOTH,
    PAGES,
    RETURNED,
    Record,
    plot_of,
    read_records,
    run,
    summary,
    table,
    write_table,
)
from benchmarks.shared import ROOT
from tlm_client.display import duration
from tlm_core.errors import MissingDependency
from tlm_core.json_files import read_json


def made_records(scores: dict[str, list[float]]) -> list[Record]:
    return [
        Record("sciie", arm, seed, 0.5, score, seconds=1.0)
        for arm, values in scores.items()
        for seed, score in enumerate(values)
    ]


def test_pages_show_the_figures_of_the_records() -> None:
    for page, rendered in PAGES.items():
        assert rendered(read_records()) in page.read_text(encoding="utf-8"), "Run 'make evidence'."


def test_pages_state_the_figures_of_the_recorded_demo() -> None:
    demo = read_json(ROOT / "benchmarks/quality/demo.json")
    readme, results = (" ".join((ROOT / page).read_text("utf-8").split()) for page in ("README.md", "docs/results.md"))
    (low, high), time = demo["interval"], duration(demo["seconds"])
    linear, returned, alone = (f"{demo[model]:.3f}" for model in ("linear", "returned", "task_only"))
    assert f"the demo took {time} (" in readme and f"The whole demo took {time} after set-up" in results
    assert f"the returned model has a macro-F1 of {returned} on test." in readme
    assert f"The service's linear model has {linear}, and the encoder trained on the task alone has {alone}." in readme
    assert f"The returned model gains {demo['difference']:.3f} over the linear model." in readme
    difference = f"{demo['difference']:+.3f} ({low:.3f} to {high:.3f})"
    right = f"{demo['sample_texts_right']} of {demo['sample_texts']}"
    assert f"| {time} | {linear} | {returned} | {difference} | {right} |" in results
    for model, score in (("linear model", linear), ("task only, seed 0", alone), ("returned model", f"**{returned}**")):
        assert f"{model} | {score} |" in results


def test_cells_have_mean_spread_and_the_number_of_seeds() -> None:
    records = [
        *made_records({"TLM (BM25)": [0.6, 0.7], "task only": [0.5]}),
        Record("sciie", "fastText", None, 0.4, 0.45, 9.0),
    ]
    rows = {line.split(" | ")[0].strip("| "): line for line in table(records).splitlines() if line.startswith("|")}
    assert "| 0.650 ± 0.071 (2) |" in rows["TLM (BM25)"] and "| 0.500 (1) |" in rows["task only"]
    assert "| 0.450 |" in rows["fastText"] and "| – |" in rows[RETURNED]


@pytest.mark.parametrize(
    ("rival", "verdict"),
    [([0.5, 0.51, 0.52], "confirmed"), ([0.7, 0.71, 0.72], "refuted"), ([0.5, 0.7, 0.61], "open")],
)
def test_claims_are_tested_on_equal_seeds(rival: list[float], verdict: str) -> None:
    text = table(made_records({"TLM (BM25)": [0.60, 0.611, 0.62, 0.9], "task only": rival}))
    row = next(line for line in text.splitlines() if line.startswith("| TLM (BM25) > task only"))
    assert verdict in row and "3 seeds" in row


def test_fixed_rival_is_paired_with_each_seed_without_a_verdict() -> None:
    records = [
        *made_records({RETURNED: [0.60, 0.62, 0.61]}),
        Record("sciie", "linear model", None, None, 0.5, 9.0, interval=[0.47, 0.53]),
    ]
    text = table(records)
    row = next(line for line in text.splitlines() if line.startswith(f"| {RETURNED} > linear model |"))
    assert "+0.110 ± 0.010, 3 seeds" in row and "confirmed" not in text
    assert "| 95 % interval of the linear model | – | – | 0.470 to 0.530 | – | – |" in text


def test_splits_count_the_losses_to_each_other_model() -> None:
    scores = {
        LINEAR: [0.5, 0.6, 0.7],
        LINEAR_BOTH: [0.6, 0.6, 0.7],
        INSTANT: [0.6, 0.65, 0.7],
        RETURNED: [0.585, 0.595, 0.9],
    }
    records = [
        Record(split_of("sciie", number), arm, 0, None, score, 1.0)
        for arm, values in scores.items()
        for number, score in enumerate(values)
    ]
    assert "| SciERC | 3 | 0.600 | 0.633 | 0.650 | 0.693 | linear model: 0; " in table(records)
    assert "SciERC | 2 |" in table(records[:-1]), "the third split lacks a model"


def test_split_of_a_task_has_the_rows_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLM_SHARED_DATA", str(tmp_path))
    monkeypatch.setattr(data, "FOLDER", tmp_path / "build")
    (folder := tmp_path / "tasks" / "made").mkdir(parents=True)
    for split, rows in (("train", range(6)), ("validation", range(6, 8)), ("test", range(8, 11))):
        (folder / f"{split}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    splits = [text_folder(split_of("made", number)) for number in (0, 1, 0)]
    read = [
        [(each / f"{name}.jsonl").read_text().split() for name in ("train", "validation", "test")] for each in splits
    ]
    assert [len(part) for part in read[0]] == [6, 2, 3] and read[0] == read[2] != read[1]
    assert sorted(itertools.chain.from_iterable(read[1]), key=int) == [str(row) for row in range(11)]


def test_equal_differences_have_no_probability() -> None:
    records = [
        *made_records({RETURNED: [0.6, 0.6, 0.6]}),
        Record("sciie", "linear model", None, None, 0.5, 9.0),
    ]
    row = next(line for line in table(records).splitlines() if line.startswith(f"| {RETURNED} > linear model"))
    assert "+0.100, the same with each of 3 seeds" in row


def test_summary_marks_the_best_model_of_each_task() -> None:
    text = summary(made_records({"task only": [0.5, 0.6], "TLM (BM25)": [0.7, 0.6]}))
    row = next(line for line in text.splitlines() if line.startswith("| SciERC"))
    assert row.count("**") == 2 and "**0.650 ± 0.071 (2)**" in row


def test_cost_is_the_mean_flops_of_all_runs() -> None:
    records = [
        replace(r, flops=1e12 * (1 + r.seed)) for r in made_records({"task only": [0.5, 0.6]}) if r.seed is not None
    ]
    assert "| 1.5e+12 |" in table(records)
    other = replace(records[0], task=split_of("sciie", 0), flops=9e12)
    assert "| 1.5e+12 |" in table([*records, other]), "other splits have a table of their own"


@pytest.mark.parametrize(("seeds", "jobs"), [(3, [(0, [0, 1, 2])]), (4, [(0, [0, 1, 2]), (1, [1, 2, 3])])])
def test_returned_models_come_from_different_seeds(
    seeds: int, jobs: list[tuple[int, list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "RECORDS", tmp_path / "records.jsonl")
    members: dict[int, list[int]] = {}

    def returned(task: str, job: str, seed: int, of_job: list[int]) -> Record:
        members[seed] = of_job
        return Record(task, job, seed, 0.5, 0.5, 1.0)

    monkeypatch.setattr(evidence, "_trained", returned)
    run(["sciie"], seeds, [evidence.RETURNED])
    assert list(members.items())[: len(jobs)] == jobs and len({tuple(m) for m in members.values()}) == len(members)


def test_run_trains_only_what_the_records_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "RECORDS", tmp_path / "records.jsonl")
    first = Record("sciie", "task only", 0, 0.5, 0.5, 1.0)
    (tmp_path / "records.jsonl").write_text(json.dumps(asdict(first)) + "\n", encoding="utf-8")
    trained: list[int] = []

    def train(task: str, arm: str, seed: int, _: list[int]) -> Record:
        trained.append(seed)
        return Record(task, arm, seed, 0.5, 0.5, 1.0)

    monkeypatch.setattr(evidence, "_trained", train)
    run(["sciie"], 3, ["task only"])
    run(["sciie"], 3, ["task only"])
    assert trained == [1, 2]


def test_missing_library_leaves_out_its_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(evidence, "_trained", lambda task, arm, seed, _: Record(task, arm, seed, 0.5, 0.5, 1.0))

    def fixed(task: str, arm: str) -> Record:
        if arm == evidence.FASTTEXT:
            raise MissingDependency("Install fastText.")
        return Record(task, arm, None, None, 0.5, 1.0)

    monkeypatch.setattr(evidence, "_fixed", fixed)
    run(["sciie"], 1, [LINEAR, evidence.FASTTEXT, "task only"])
    assert [record.arm for record in read_records()] == [LINEAR, "task only"]


def test_table_replaces_only_what_is_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{evidence.BEGIN}\nold\n{evidence.END}\nafter\n", encoding="utf-8")
    write_table("new \\1", page)
    assert page.read_text(encoding="utf-8") == f"before\n{evidence.BEGIN}\nnew \\1\n{evidence.END}\nafter\n"


def test_plot_has_one_curve_for_each_task_with_several_budgets() -> None:
    assert plot_of(made_records({"TLM (BM25)": [0.6]})) == ""
    records = [
        *(replace(r, flops=1e12) for r in made_records({"TLM (BM25)": [0.6, 0.62]})),
        *(replace(r, flops=1e13) for r in made_records({"TLM (BM25), 10× tokens": [0.65]})),
    ]
    drawing = plot_of(records)
    assert drawing is not None and drawing.count("<circle") == 2 and "SciERC" in drawing and "SciCite" not in drawing
