"""Real (non-padding) tokens a second of the joint step on this machine's cores, against the published loop and Trainer.

All rivals have the same threads, rows, text, vocabulary and no dropout, and take turns within one run, each in a
process of its own. `joint_step_…` is the published model on our engine (BERT 4 x 256), `fast_joint_step_…` recipe
`fast` at the same size. Each rival runs as it comes, and once more (`…_tuned`) with the environment that our stack
gives to its own training processes, of which memory kept by the C library does most for it. On a processor without
instructions for bf16 all compute in fp32, and the rival that is to have both has compilation alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median

from benchmarks.report import alternate, figure, ratios, remark
from benchmarks.shared import ROOT
from benchmarks.training.apart import Apart, RivalDied
from benchmarks.training.data import environment, plain_environment, precision, prepared

# A cold compile takes a minute or two here; one that takes longer than this is left out and said so.
COMPILE_SECONDS = 400
OURS = {"joint_step": "ours", "fast_joint_step": "fast"}
# What comes after the name of a figure, and the environment that the rival has in it.
SETTINGS = {"": plain_environment, "_tuned": environment}


def against_published(repeats: int, steps: int) -> None:
    given = precision()
    forms = [given, f"{given}_compile"] if given == "fp32" else ["fp32", given, f"{given}_compile"]
    slow = max(1, steps // 3)  # the rivals take several times as long for a step
    with ExitStack() as ended:
        rivals = {}
        for name in OURS.values():
            rival = ended.enter_context(Apart("benchmarks.training.ours", name, env=environment()))
            rivals[name] = partial(rival.run, steps)
        for setting, made in SETTINGS.items():
            for form in forms:
                rival = ended.enter_context(Apart("benchmarks.training.published_loop", form, env=made()))
                try:
                    rival.run(1)  # compiles, where it is to
                except RivalDied:
                    remark(f"the published loop does not run as {form} here; what it said stands above")
                    continue
                rivals[f"published_{form}{setting}"] = partial(rival.run, slow)
        found = alternate(rivals, repeats)
    for name, runs in found.items():
        figure(f"tokens_per_second_{name}", runs, unit="real tokens/s")
    for setting in SETTINGS:
        best = _best({form: found.get(f"published_{form}{setting}", []) for form in (*forms[1:], "fp32")})
        remark(f"the best of what the published loop is given{setting} is {best}")
        for title, name in OURS.items():
            published, better = (found[f"published_{form}{setting}"] for form in ("fp32", best))
            figure(f"{title}_vs_published_fp32{setting}", ratios(found[name], published), goal=12, unit="x")
            row = f"{title}_vs_published_{given}_compile{setting}"
            figure(row, ratios(found[name], better), goal=6 if given == "bf16" else None, unit="x")


def _best(runs: Mapping[str, list[float]]) -> str:
    """The fastest of those that ran."""
    return max((name for name in runs if runs[name]), key=lambda name: median(runs[name]))


def against_trainer(repeats: int, steps: int) -> None:
    for setting, made in SETTINGS.items():
        found = {}
        for form in ("eager", "compiled"):
            command = [sys.executable, "-m", "benchmarks.training.hf_trainer"]
            command += [f"--repeats={repeats}", f"--steps={steps}", *(["--compiled"] if form == "compiled" else [])]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=made(), check=True, stdout=subprocess.PIPE, timeout=COMPILE_SECONDS
                )
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                remark(f"Trainer does not run {form} here: {error}")
                continue
            found[form] = json.loads(done.stdout.splitlines()[-1])
            figure(f"tokens_per_second_trainer_{form}{setting}", found[form]["trainer"], unit="real tokens/s")
        for title, name in OURS.items():
            row = f"{title}_vs_trainer{setting}"
            if not found:
                figure(row, [], goal=4, unit="x", reason="Trainer did not run; see standard error")
                continue
            best = found[_best({form: runs["trainer"] for form, runs in found.items()})]
            figure(row, ratios(best[name], best["trainer"]), goal=4, unit="x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--steps", type=int, default=9, help="of ours in one turn; the published loop makes a third")
    parser.add_argument("--against", choices=("published", "trainer"))
    options = parser.parse_args()
    prepared()
    if options.against != "trainer":
        against_published(options.repeats, options.steps)
    if options.against != "published":
        against_trainer(options.repeats, max(1, 2 * options.steps // 3))


if __name__ == "__main__":
    main()
