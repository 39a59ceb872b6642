"""Real (non-padding) tokens a second of the joint step on this machine's cores, against the published loop and Trainer.

All rivals have the same threads, rows, text, vocabulary and no dropout, and take turns within one run. `joint_step_…`
is the published model on our engine (BERT 4 x 256), `fast_joint_step_…` recipe `fast` at the same size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks.report import alternate, figure, ratios, remark
from benchmarks.shared import ROOT
from benchmarks.training.data import bert_recipe, environment, fast_recipe, prepared, threads
from benchmarks.training.ours import Ours
from benchmarks.training.published_loop import PublishedLoop

# A cold compile takes a minute or two here; one that takes longer than this is left out and said so.
COMPILE_SECONDS = 400
OURS = {"joint_step": "ours", "fast_joint_step": "fast"}


def compile_works() -> bool:
    """Compile the published loop once in a process of its own, which also fills the cache for the run that counts."""
    command = [sys.executable, "-m", "benchmarks.training.published_loop"]
    try:
        subprocess.run(
            command, cwd=ROOT, env=environment(), check=True, timeout=COMPILE_SECONDS, stdout=subprocess.DEVNULL
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        remark(f"the published loop does not compile here, so it runs eager alone: {error}")
        return False
    return True


def against_published(repeats: int, steps: int) -> None:
    slow = max(1, steps // 3)  # the rivals take several times as long for a step
    rivals: dict[str, Callable[[], float]] = {
        "published_fp32": partial(PublishedLoop(bf16=False).run, slow),
        "published_bf16": partial(PublishedLoop(bf16=True).run, slow),
        "ours": partial(Ours(bert_recipe()).run, steps),
        "fast": partial(Ours(fast_recipe()).run, steps),
    }
    if compile_works():
        rivals["published_bf16_compile"] = partial(PublishedLoop(bf16=True, compiled=True).run, slow)
    found = alternate(rivals, repeats)
    for name, runs in found.items():
        figure(f"tokens_per_second_{name}", runs, unit="real tokens/s")
    given = max((name for name in found if "bf16" in name), key=lambda name: median(found[name]))
    remark(f"the better of the published loop's bf16 forms is {given}")
    for title, name in OURS.items():
        figure(f"{title}_vs_published_fp32", ratios(found[name], found["published_fp32"]), goal=12, unit="x")
        figure(f"{title}_vs_published_bf16_compile", ratios(found[name], found[given]), goal=6, unit="x")


def against_trainer(repeats: int, steps: int) -> None:
    found = {}
    for form in ("eager", "compiled"):
        command = [sys.executable, "-m", "benchmarks.training.hf_trainer", f"--repeats={repeats}", f"--steps={steps}"]
        command += ["--compiled"] if form == "compiled" else []
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE, timeout=COMPILE_SECONDS
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            remark(f"Trainer does not run {form} here: {error}")
            continue
        found[form] = json.loads(done.stdout.splitlines()[-1])
        figure(f"tokens_per_second_trainer_{form}", found[form]["trainer"], unit="real tokens/s")
    if not found:
        for title in OURS:
            figure(f"{title}_vs_trainer", [], goal=4, unit="x", reason="Trainer did not run; see standard error")
        return
    best = max(found.values(), key=lambda runs: median(runs["trainer"]))
    for title, name in OURS.items():
        figure(f"{title}_vs_trainer", ratios(best[name], best["trainer"]), goal=4, unit="x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of ours in one turn; the published loop makes a third")
    parser.add_argument("--against", choices=("published", "trainer"))
    options = parser.parse_args()
    prepared()
    torch.set_num_threads(threads())
    if options.against != "trainer":
        against_published(options.repeats, options.steps)
    if options.against != "published":
        against_trainer(options.repeats, max(1, 2 * options.steps // 3))


if __name__ == "__main__":
    main()
