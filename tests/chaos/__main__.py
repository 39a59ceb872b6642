"""`python -m tests.chaos`: many jobs and faults, and a report of what the checker finds.

With --bug, the other options have defaults under which the bug shows.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.checker import violations
from tests.chaos.harness import KINDS_OF_RAY, Chaos, plan_faults, say
from tests.chaos.processes import BUGS


def main() -> int:
    """Run, and return 1 when the checker's verdict is not the expected one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--wait", type=float, default=3.0, help="mean seconds between two faults")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds in which each job must end")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--bug", choices=BUGS, default="", help="plant a bug, which the checker must find")
    faults = sorted({f"{kind} {target}" for kind, target, *_ in KINDS_OF_RAY})
    parser.add_argument("--fault", action="append", default=[], choices=faults, help="only this fault; repeatable")
    parser.add_argument("--ray", action="store_true", help="run the workers on a real Ray head")
    if bug := parser.parse_known_args()[0].bug:
        parser.set_defaults(seed=7, clients=8, patience=60.0, **BUGS[bug])
    options = parser.parse_args()
    say(f"seed {options.seed}: {options.jobs} jobs, {options.faults} faults {options.bug}")
    folder, began = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    chaos = Chaos(folder, options.bug, real_disk=True, ray=options.ray)
    plan = plan_faults(options.seed, options.faults, options.wait, options.fault, ray=options.ray)
    chaos.run(options.seed, options.jobs, options.clients, plan, options.patience)
    history = chaos.history
    states = dict(Counter(str(record.state) for record in history.records.values()))
    say(f"{time.monotonic() - began:.0f} s, {len(history.answers)} answers, {len(history.writes)} writes of workers")
    say(f"states {states}; logs in {folder}")
    injected = Counter(f"{fault['target']} {fault['kind']}" for fault in chaos.faults)
    say(f"{sum(injected.values())} faults: {dict(injected)}")
    contradictions = violations(history)
    say("\n".join(contradictions[:40]) or "The checker finds nothing.")
    say(f"{len(contradictions)} violations: {dict(Counter(line.split(':')[0] for line in contradictions))}")
    return int(bool(contradictions) is not bool(options.bug))


if __name__ == "__main__":
    sys.exit(main())
