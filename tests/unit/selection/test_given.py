"""A selection that is uploaded with the dataset: file formats, order, ranks and data errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.selection.make import rows, task_of
from tests.unit.tasks.make import folder, put
from tests.unit.tasks.make import rows as records
from tlm_core.corpus.passages import passage_id
from tlm_core.errors import CorruptArtifact, EmptySelection, InvalidDataset, InvalidRequest
from tlm_core.selection.given import GIVEN, given_part, write_given
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task
from tlm_core.tasks.validate import load_task, write_task

CSV = 'text,id,rank,more\n"second, best",7,2,x\nfirst,9,1,y\nthird,1,3,z\n'
LEAK = "one two three four five six seven eight nine"


def converted(path: Path, tmp_path: Path) -> list[tuple[str, int | None]]:
    """(text, rank) of the converted file, in order."""
    count = write_given(path, tmp_path / GIVEN)
    table = pq.read_table(tmp_path / GIVEN).to_pylist()
    assert count == len(table) and all(row["id"] == passage_id(row["text"]) for row in table)
    return [(row["text"], row["rank"]) for row in table]


def selected(path: Path, tmp_path: Path, task: Task | None = None, **params: Any) -> dict[str, Any]:
    write_given(path, tmp_path / GIVEN)
    options = Selection(selector="given", **params)
    folder, scratch = tmp_path / "out", tmp_path / "scratch"
    return select(task or task_of(["any"]), tmp_path / GIVEN, options, folder, seed=0, scratch=scratch)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_is_read_by_text_and_rank(tmp_path: Path, kind: str) -> None:
    values: dict[str, list[Any]] = {"text": ["second", "first", "third"], "id": [7, 9, 1], "rank": [2, 1, 3]}
    path = tmp_path / f"external.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(values), path)
    elif kind == "jsonl":
        put(path, "".join(json.dumps(dict(zip(values, row, strict=True))) + "\n" for row in zip(*values.values())))  # noqa: B905
    else:
        blank = "," if kind == "csv" else "\t"
        lines = [blank.join(values), *(blank.join(map(str, row)) for row in zip(*values.values()))]  # noqa: B905
        put(path, "\n".join(lines) + "\n")
    assert converted(path, tmp_path) == [("first", 1), ("second", 2), ("third", 3)]


def test_other_columns_are_ignored_and_ids_come_from_texts(tmp_path: Path) -> None:
    assert converted(put(tmp_path / "a.csv", CSV), tmp_path)[1] == ("second, best", 2)


def test_ranks_from_zero_are_increased_by_one(tmp_path: Path) -> None:
    assert converted(put(tmp_path / "a.csv", "text,rank\nb,1\na,0\n"), tmp_path) == [("a", 1), ("b", 2)]


def test_file_without_ranks_keeps_its_order_and_ignores_top_k(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "text\n" + "".join(f"z{9 - n}\n" for n in range(9)))
    assert converted(path, tmp_path) == [(f"z{9 - n}", None) for n in range(9)]
    assert selected(path, tmp_path, top_k=2)["passages"] == 9
    assert [row["rank"] for row in rows(tmp_path / "out", "passages")] == list(range(1, 10))


def test_equal_texts_merge_at_best_rank_and_blank_texts_are_skipped(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "text,rank\nsame,5\nother,4\n  ,1\nsame,3\n")
    assert converted(path, tmp_path) == [("same", 3), ("other", 4)]


def test_order_is_the_same_across_batches(tmp_path: Path) -> None:
    count = 9000
    lines = [json.dumps({"text": f"t{n}", "rank": 1 + (n * 7919) % count}) for n in range(count)]
    passages = converted(put(tmp_path / "a.jsonl", "\n".join(lines) + "\n"), tmp_path)
    assert [rank for _, rank in passages] == list(range(1, count + 1))
    assert all(1 + (int(text[1:]) * 7919) % count == rank for text, rank in passages)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.csv", "text,rank\na,first\n", "not_a_rank"),
        ("a.csv", "text,rank\na,-1\n", "not_a_rank"),
        ("a.csv", "text,rank\na,1\nb,\n", "missing_rank"),
        ("a.csv", "text,rank\n", "no_rows"),
        ("a.csv", "one,two\na,b\n", "missing_column"),
        ("a.jsonl", '{"text": 3}\n', "not_text"),
        ("a.jsonl", '{"text": "a", "rank": true}\n', "not_a_rank"),
        ("a.parquet", "no parquet", "unreadable_file"),
    ],
)
def test_data_errors_name_the_row(tmp_path: Path, name: str, content: str, code: str) -> None:
    with pytest.raises(InvalidDataset, match="in the selection") as caught:
        write_given(put(tmp_path / name, content), tmp_path / GIVEN)
    assert caught.value.faults[0].code == code


def test_error_about_a_rank_states_the_valid_ranks(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"invalid rank .*Expected a whole number from 0 to 2147483646"):
        write_given(put(tmp_path / "a.csv", "text,rank\na,-1\n"), tmp_path / GIVEN)


def test_unsupported_file_type_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="csv, tsv, jsonl or parquet"):
        write_given(put(tmp_path / "selection.xlsx", "x"), tmp_path / GIVEN)


def test_top_k_budget_and_leak_filter_apply(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", f"text,rank\nfour,4\nthree,3\nso {LEAK},1\ntwo,2\nagain two,2\n")
    facts = selected(path, tmp_path, task_of(["any"], held_out=[LEAK]), top_k=3, max_passages=2)
    passages = rows(tmp_path / "out", "passages")
    assert sorted(row["text"] for row in passages) == ["again two", "two"]
    assert {(row["rank"], row["score"], row["source"]) for row in passages} == {(2, None, "given")}
    assert facts["leaks"]["passages"] == 1 and facts["queries"] is None and "corpus" not in facts
    assert rows(tmp_path / "out", "provenance") == []


def test_no_passage_within_top_k_fails(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="top_k"):
        selected(put(tmp_path / "a.csv", "text,rank\na,60\nb,80\n"), tmp_path, top_k=50)


def test_first_passage_longer_than_the_budget_fails_whatever_was_dropped_before(tmp_path: Path) -> None:
    path, task = (
        put(tmp_path / "a.csv", f"text,rank\nso {LEAK},1\n{'long ' * 40},2\n"),
        task_of(["any"], held_out=[LEAK]),
    )
    with pytest.raises(EmptySelection, match="max_tokens"):
        selected(path, tmp_path, task, max_tokens=20)


def test_truncated_file_raises_corrupt_artifact(tmp_path: Path) -> None:
    write_given(put(tmp_path / "a.csv", CSV), tmp_path / GIVEN)
    (tmp_path / GIVEN).write_bytes((tmp_path / GIVEN).read_bytes()[:-20])
    with pytest.raises(CorruptArtifact):
        options = Selection(selector="given")
        select(task_of(["a"]), tmp_path / GIVEN, options, tmp_path / "out", seed=0, scratch=tmp_path / "scratch")


@pytest.mark.parametrize("name", ["selection.csv", "external.csv", "External.release.csv", "small_external.csv"])
def test_dataset_folder_can_contain_the_selection(tmp_path: Path, name: str) -> None:
    source = folder(tmp_path / "data", records(20))
    put(source / name, CSV)
    report = write_task(source, tmp_path / "task")
    assert report["counts"] == {"train": 20, "validation": 4, "test": 4} and not report["notes"][0].startswith("files")
    assert pq.read_table(tmp_path / "task" / GIVEN)["text"].to_pylist() == ["first", "second, best", "third"]


def test_selection_part_of_a_mapping_is_not_a_split(tmp_path: Path) -> None:
    train, extra = folder(tmp_path / "data", records(20)) / "train.jsonl", put(tmp_path / "x.csv", CSV)
    load_task({"train": train, "selection": extra})
    assert given_part({"train": train, "selection": extra}) == extra
    assert given_part({"train": train}) is given_part("hub:a/b") is given_part(train) is None


def test_two_selections_in_one_folder_are_rejected(tmp_path: Path) -> None:
    for name in ("selection.csv", "external.csv"):
        put(tmp_path / name, CSV)
    with pytest.raises(InvalidRequest, match="Remove one"):
        given_part(tmp_path)
