"""Change one setting of the recipe `fast` at a time, and compare the validation scores.

`python -m benchmarks.quality.ablations sciie`
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.quality.runs import TASK_ONLY, argument_parser, print_scores, train
from benchmarks.report import remark
from tlm_core.training.recipe import resolve

CHANGES: dict[str, dict[str, Any]] = {
    "unchanged": {},
    "task_only": TASK_ONLY,
    "no_task_loss_in_joint_stage": {"joint.task_loss": False},
    "no_mlm_on_task_text": {"joint.mlm_on_task": False},
    "random_start": {"model.init": "scratch"},
    "adamw": {"joint.optimizer.name": "adamw"},
    "bert_layers": {"model.architecture": "bert", "model.init": "scratch"},
    "mask_15": {"joint.mask_rate": 0.15},
    "mask_45": {"joint.mask_rate": 0.45},
    "mask_45_to_15": {"joint.mask_rate": 0.45, "joint.mask_rate_end": 0.15},
    "mask_30_to_15": {"joint.mask_rate_end": 0.15},
    "rho1_1": {"joint.rho1": 1},
    "vocabulary_4096": {"tokenizer.vocab_size": 4096},
    "vocabulary_16384": {"tokenizer.vocab_size": 16_384},
    "top_10": {"selection.top_k": 10},
    "top_50": {"selection.top_k": 50},
    "batch_16": {"joint.batch_rows": 16},
    "head_reset": {"finetune.reset_head": True},
}


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    for task in options.tasks:
        means: dict[str, float] = {}
        for change, overrides in CHANGES.items():
            recipe = resolve("fast", "tiny", dict(options.overrides) | overrides)
            scores = train(task, change, recipe, range(options.seeds))
            print_scores(f"{task}_{change}", scores)
            means[change] = mean(score.validation for score in scores)
            remark(f"{task}, {change}: {means[change] - means['unchanged']:+.3f} on validation")


if __name__ == "__main__":
    main()
