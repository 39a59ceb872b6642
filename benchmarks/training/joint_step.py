"""Compare real (non-padding) tokens per second of our joint step, the published loop and `transformers.Trainer`.

All rivals have the same threads, rows, text and vocabulary, and no dropout. They alternate in one run, each in its own
process. `joint_step_…` is the published model on our engine (BERT 4 x 256); `fast_joint_step_…` is recipe `fast` of
that size. `…_tuned` gives a rival the environment of our training processes. Without native bf16, all rivals compute in
fp32.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median

from benchmarks.report import alternate, figure, ratios, remark
from benchmarks.shared import ROOT, program, result_of
from benchmarks.training.rival_process import RivalFailed, RivalProcess
from benchmarks.training.training_data import environment, plain_environment, precision, prepared

# Time limit of a Trainer process. Compilation takes one or two minutes. A process over the limit gives no figure.
COMPILE_SECONDS = 400
OURS = {"joint_step": "ours", "fast_joint_step": "fast"}
# Suffix of the figure's name → environment of the rival.
SETTINGS = {"": plain_environment, "_tuned": environment}


def against_published(repeats: int, steps: int) -> None:
    native = precision()
    forms = [native, f"{native}_compile"] if native == "fp32" else ["fp32", native, f"{native}_compile"]
    slow = max(1, steps // 3)  # a step of the rivals takes several times as long
    with ExitStack() as stack:
        rivals = {}
        for name in OURS.values():
            rival = stack.enter_context(RivalProcess("ours", name, env=environment()))
            rivals[name] = partial(rival.run, steps)
        for setting, create_environment in SETTINGS.items():
            for form in forms:
                rival = stack.enter_context(RivalProcess("published_loop", form, env=create_environment()))
                try:
                    rival.run(1)  # compiles
                except RivalFailed:
                    remark(f"the published loop does not run as {form} here; see the lines above")
                    continue
                rivals[f"published_{form}{setting}"] = partial(rival.run, slow)
        rates = alternate(rivals, repeats)
    for name, runs in rates.items():
        figure(f"tokens_per_second_{name}", runs, unit="real tokens/s")
    for setting in SETTINGS:
        best = _best({form: rates.get(f"published_{form}{setting}", []) for form in (*forms[1:], "fp32")})
        remark(f"the published loop{setting} is fastest as {best}")
        for title, name in OURS.items():
            published, fastest = (rates[f"published_{form}{setting}"] for form in ("fp32", best))
            figure(f"{title}_vs_published_fp32{setting}", ratios(rates[name], published), goal=12, unit="x")
            row = f"{title}_vs_published_{native}_compile{setting}"
            figure(row, ratios(rates[name], fastest), goal=6 if native == "bf16" else None, unit="x")


def _best(runs: Mapping[str, list[float]]) -> str:
    """Return the form, such as `bf16_compile`, with the highest median rate. runs: form → rates, [] if it failed."""
    return max((name for name in runs if runs[name]), key=lambda name: median(runs[name]))


def against_trainer(repeats: int, steps: int) -> None:
    for setting, create_environment in SETTINGS.items():
        results = {}
        for form, compiled in (("eager", ()), ("compiled", ("--compiled",))):
            command = program("training.hf_trainer", f"--repeats={repeats}", f"--steps={steps}", *compiled)
            try:
                results[form] = result_of(command, cwd=ROOT, env=create_environment(), timeout=COMPILE_SECONDS)
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                remark(f"Trainer does not run {form} here: {error}")
                continue
            figure(f"tokens_per_second_trainer_{form}{setting}", results[form]["trainer"], unit="real tokens/s")
        for title, name in OURS.items():
            row = f"{title}_vs_trainer{setting}"
            if not results:
                figure(row, [], goal=4, unit="x", reason="Trainer did not run; see standard error")
                continue
            best = results[_best({form: runs["trainer"] for form, runs in results.items()})]
            figure(row, ratios(best[name], best["trainer"]), goal=4, unit="x")


def main() -> None:
    prepared()
    against_published(repeats=4, steps=9)
    against_trainer(repeats=4, steps=6)


if __name__ == "__main__":
    main()
