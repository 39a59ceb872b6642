"""What each choice of recipe `fast` is worth, one changed at a time: `python -m benchmarks.quality.ablations sciie`.

On our engine, in this process; every run's outcome is kept under build/quality and not run again. Validation is what
choices are made on; test is told beside it.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.quality.runs import asked, outcome, selected
from benchmarks.report import figure, remark
from tlm_core.training.recipe import resolve

CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "task only": {"joint.enabled": False},
    "no task loss in the joint stage": {"joint.task_loss": False},
    "no MLM on task text": {"joint.mlm_on_task": False},
    "random start": {"model.init": "scratch"},
    "AdamW alone": {"joint.optimizer.name": "adamw"},
    "BERT's layers": {"model.architecture": "bert", "model.init": "scratch"},
    "masking 15 %": {"joint.mask_rate": 0.15},
    "masking 45 %": {"joint.mask_rate": 0.45},
    "masking 45 to 15 %": {"joint.mask_rate": 0.45, "joint.mask_rate_end": 0.15},
    "masking 30 to 15 %": {"joint.mask_rate_end": 0.15},
    "rho1 1": {"joint.rho1": 1},
    "vocabulary 4,096": {"tokenizer.vocab_size": 4096},
    "vocabulary 16,384": {"tokenizer.vocab_size": 16_384},
    "top 10": {"selection.top_k": 10},
    "top 50": {"selection.top_k": 50},
    "16 rows a step": {"joint.batch_rows": 16},
    "head reset before finetuning": {"finetune.reset_head": True},
}


def main() -> None:
    given, common, named = asked(__doc__)
    for name in given.tasks:
        usual: float | None = None
        for change, own in CHANGES.items():
            recipe = resolve("fast", "tiny", common | own)
            task, selection = selected(name, recipe.selection)
            passages = selection if recipe.joint.enabled else None
            runs = [
                outcome(name, f"{change} {named} {seed}", task, passages, recipe, seed) for seed in range(given.seeds)
            ]
            for split in ("validation", "test"):
                figure(f"{name}, {change}, {split}", [run[split] for run in runs], unit="score")
            score = mean(run["validation"] for run in runs)
            usual = score if usual is None else usual
            remark(f"{name}, {change}: {score - usual:+.3f} on validation")


if __name__ == "__main__":
    main()
