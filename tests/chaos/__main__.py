"""`python -m tests.chaos`: run many jobs, inject faults, and print the violations that the checker finds.

--bug and --bugs plant bugs, which the checker must find. They set other defaults, with which the bugs have effects.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.checker import is_expected, kinds, violations
from tests.chaos.harness import KINDS_OF_RAY, Chaos, plan_faults, say
from tests.chaos.processes import BUGS


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--wait", type=float, default=3.0, help="mean seconds between two faults")
    parser.add_argument("--step-seconds", type=float, default=0.1, help="time of each of the ten steps of a job")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds in which each job must end")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--bug", choices=BUGS, default="", help="plant a bug, which the checker must find")
    parser.add_argument("--bugs", action="store_true", help="run once with each bug")
    faults = sorted({f"{kind} {target}" for kind, target, *_ in KINDS_OF_RAY})
    parser.add_argument("--fault", action="append", default=[], choices=faults, help="only this fault; repeatable")
    parser.add_argument("--ray", action="store_true", help="run the workers on a real Ray head")
    parser.set_defaults(expected="")
    if bug := parser.parse_known_args(arguments)[0].bug:
        parser.set_defaults(seed=7, clients=8, patience=60.0, **BUGS[bug])
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Run once. Return 1 if the checker misses the planted bug or, without a bug, finds a violation. Else return 0."""
    say(f"seed {options.seed}: {options.jobs} jobs, {options.faults} faults {options.bug}")
    folder, began = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    chaos = Chaos(folder, options.bug, real_disk=True, ray=options.ray, step_seconds=options.step_seconds)
    plan = plan_faults(options.seed, options.faults, options.wait, options.fault, ray=options.ray)
    chaos.run(options.seed, options.jobs, options.clients, plan, options.patience)
    history = chaos.history
    states = dict(Counter(str(record.state) for record in history.records.values()))
    say(f"{time.monotonic() - began:.0f} s, {len(history.answers)} answers, {len(history.writes)} writes of workers")
    say(f"{len(history.records)} records of {options.jobs} jobs, states {states}; logs in {folder}")
    _show_faults(chaos.faults, options.faults, folder / "faults.json")
    contradictions = violations(history)
    say("\n".join(contradictions[:40]) or "The checker finds nothing.")
    say(f"{len(contradictions)} violations: {dict(kinds(contradictions))}")
    if is_expected(contradictions, options.expected):
        return 0
    say(f"Failed: no '{options.expected}' in the report." if options.bug else "Failed: see the violations above.")
    return 1


def _show_faults(faults: list[dict[str, object]], planned: int, path: Path) -> None:
    """Print how many faults were injected, and write all faults to the file `path`."""
    path.write_text(json.dumps(faults, indent=1))
    injected, missed = (
        Counter(f"{fault['target']} {fault['kind']}" for fault in faults if fault["injected"] is there)
        for there in (True, False)
    )
    say(f"{injected.total()} of {planned} planned faults injected: {dict(injected)}; see {path}")
    say(f"{missed.total()} without a target: {dict(missed)}; {planned - len(faults)} after the last job")


def main() -> int:
    """Run once, or once with each bug. Return 1 if `run` returns 1 for a run."""
    arguments = sys.argv[1:]
    if read_options(arguments).bugs:
        return max(run(read_options([*arguments, "--bug", bug])) for bug in BUGS)
    return run(read_options(arguments))


if __name__ == "__main__":
    sys.exit(main())
