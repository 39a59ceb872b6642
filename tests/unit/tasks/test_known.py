"""The paper's tasks are known by name and by hub id."""

from __future__ import annotations

import pytest

from tlm_core.tasks.known import KNOWN_TASKS, known_for_hub


def test_the_eight_tasks_of_the_paper_have_the_releases_hub_ids() -> None:
    assert {task.hub_id for task in KNOWN_TASKS.values()} == {
        f"hub:yxchar/{name}-tlm"
        for name in ("ag", "hyp", "amazon", "imdb", "citation_intent", "sciie", "chemprot", "rct-20k")
    }


def test_metrics_and_lengths_are_the_papers() -> None:
    micro = {name for name, task in KNOWN_TASKS.items() if task.metric == "micro_f1"}
    assert micro == {"chemprot", "rct-20k"}
    assert {name: task.max_length for name, task in KNOWN_TASKS.items() if task.max_length != 128} == {"imdb": 512}


@pytest.mark.parametrize(("scale", "mean"), [("small", 83.78), ("medium", 84.71), ("large", 85.74)])
def test_released_scores_have_the_releases_mean(scale: str, mean: float) -> None:
    scores = [task.released[scale] for task in KNOWN_TASKS.values()]
    assert sum(scores) / len(scores) == pytest.approx(mean, abs=0.006)


def test_known_task_is_recognized_by_its_hub_path() -> None:
    task = known_for_hub("yxchar/chemprot-tlm")
    assert task is not None
    assert task.name == "chemprot"
    assert known_for_hub("someone/else") is None
