"""Whatever bytes are uploaded, the answer is a report."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tasks.make import jsonl, put, rows, validate

NAMES = ["x.csv", "x.tsv", "x.jsonl", "x.json", "x.parquet", "x.csv.gz", "x"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("bytes")


def seeds() -> list[bytes]:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(12)), sink)
    table = "text,label\n" + "".join(f'"a ""b"" é {n}",{n % 2}\n' for n in range(12))
    return [
        table.encode(),
        table.encode("utf-16"),
        jsonl(rows(12)).encode(),
        json.dumps(rows(12)).encode(),
        sink.getvalue(),
        gzip.compress(table.encode()),
    ]


PIECES = st.sampled_from(
    [b"\x00", b'"', b"\n", b"\r", b",", b"\t", b"{", b"]", b"\xff", b"\xed\xa0\x80", b"\\ud800", b""]
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(seeds()),
    st.lists(st.tuples(st.floats(0, 1), PIECES), max_size=6),
    st.floats(0, 1),
)
def test_damaged_files_give_a_report(
    root: Path, name: str, content: bytes, edits: list[tuple[float, bytes]], end: float
) -> None:
    for place, piece in edits:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + 1 :]
    content = content[: int((0.3 + end) * len(content))]
    task, report = validate(put(root / name, content))
    assert (task is not None) == report["ok"] == (not report["faults"])
    json.dumps(report, allow_nan=False, ensure_ascii=False).encode()
