"""The stage `prepare`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.training.made import made_prepared, made_selection, made_task, tiny
from tlm_core.stages import PREPARE
from tlm_core.training.local import LocalReporter, run_stage
from tlm_core.training.params import PrepareParams
from tlm_core.training.prepared import Prepared
from tlm_core.training.stage import StopRequested


def test_prepare_is_deterministic(tmp_path: Path) -> None:
    recipe = tiny()
    first, second = (made_prepared(tmp_path / name, recipe) for name in ("first", "second"))
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    for name in set(names) - {"data.json"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    facts = [json.loads((folder / "data.json").read_text()) for folder in (first, second)]
    assert [entry.pop("cost")["tokens"] for entry in facts] and facts[0] == facts[1]


def test_passage_ids_come_from_the_selection(tmp_path: Path) -> None:
    selection = made_selection(tmp_path / "selection")
    table = pq.read_table(selection / "passages.parquet")
    names = [f"journal:{row}#é" for row in range(len(table))]
    pq.write_table(table.set_column(0, "id", pa.array(names)), selection / "passages.parquet")
    recipe = tiny()
    inputs = {"task": made_task(tmp_path / "task"), "selection": selection}
    folder = run_stage(PREPARE, inputs, PrepareParams.of(recipe), tmp_path / "prepared")
    assert Prepared(folder).passage_ids([0, 149]) == ["journal:0#é", "journal:149#é"]


@pytest.mark.parametrize(("pair", "marked"), [(False, False), (False, True), (True, True)])
def test_prepare_records_marked_spans_of_single_texts(pair: bool, marked: bool, tmp_path: Path) -> None:
    task = made_task(tmp_path / "task", pair=pair)
    if marked:
        table = pq.read_table(task / "train.parquet")
        texts = [f"[[ a ]] {text} << b >>" for text in table["text"].to_pylist()]
        place = table.schema.get_field_index("text")
        pq.write_table(table.set_column(place, "text", pa.array(texts)), task / "train.parquet")
    folder = run_stage(PREPARE, {"task": task}, PrepareParams.of(tiny()), tmp_path / "prepared")
    assert Prepared(folder).facts["marked_spans"] == (marked and not pair)


def test_frequent_and_special_tokens_have_low_weights(tmp_path: Path) -> None:
    prepared = Prepared(made_prepared(tmp_path, tiny()))
    weights, counts = prepared.token_weights, np.bincount(prepared.split("train").store.tokens)
    counts[list(prepared.vocabulary.specials)] = 0
    assert not weights[list(prepared.vocabulary.specials)].any()
    assert 0 < weights[counts.argmax()] < 0.1 < weights.max() <= 1


def test_prepare_stops_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.prepare.REPORT_SECONDS", 0.0)
    inputs = {"task": made_task(tmp_path / "task")}
    with pytest.raises(StopRequested):
        stop = LocalReporter(should_continue_at=lambda _: False)
        run_stage(PREPARE, inputs, PrepareParams.of(tiny()), tmp_path / "out", stop)
