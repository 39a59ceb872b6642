from __future__ import annotations

import json
from pathlib import Path

import pytest

from tlm_core.corpus.hub import config_and_split, parse_hub_name
from tlm_core.corpus.passages import build_passage
from tlm_core.corpus.read import read_sources
from tlm_core.errors import InvalidRequest, NotFound


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as it lies on the hub: a card that names two configurations, and their files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    card = ["---", "configs:"]
    for config in ("plain", "other"):
        card += [f"- config_name: {config}", "  data_files:"]
        for split in ("train", "test"):
            card += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps({"body": f"{config} {split} {i}"}) + "\n" for i in range(3)))
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


def resolved(name: str, configs: list[str]) -> tuple[str | None, str]:
    return config_and_split(*parse_hub_name(name), configs)


def test_hub_name_gives_configuration_and_split() -> None:
    assert parse_hub_name("hub:o/n") == ("o/n", [])
    assert resolved("hub:o/n", ["default"]) == (None, "train")
    assert resolved("hub:o/n:c", ["c", "d"]) == ("c", "train")
    assert resolved("hub:o/n:test", ["default"]) == (None, "test")
    assert resolved("hub:o/n:c:test", ["c", "d"]) == ("c", "test")
    assert resolved("hub:o/n::test", ["only"]) == (None, "test")


@pytest.mark.parametrize("name", ["hub:", "hub:a:b:c:d", "hub:o/n:e:test", "hub:o/n"])
def test_unknown_hub_configuration_is_rejected(name: str) -> None:
    with pytest.raises(InvalidRequest):
        resolved(name, ["c", "d"])


def test_dataset_in_hub_layout_is_streamed(repository: Path) -> None:
    heard: list[str] = []
    name = f"hub:{repository}:other:test"
    passages = list(read_sources([name], notify=heard.append))
    assert passages == [build_passage(f"other test {i}", name) for i in range(3)]
    assert len(heard) == 1 and "reading 'body'" in heard[0]


def test_missing_split_or_repository_raises_a_project_error(repository: Path) -> None:
    with pytest.raises(InvalidRequest, match="nosplit"):
        list(read_sources([f"hub:{repository}:plain:nosplit"]))
    with pytest.raises(NotFound):
        list(read_sources([f"hub:{repository}/none"]))
