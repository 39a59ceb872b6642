"""Two data-parallel workers of one core against one worker of one core, over gloo, without Ray.

Each worker is a process on its own core that runs the joint stage. `same_batch` splits the 32 rows of a step (as a
recipe does); `batch_each` gives each worker 32. Two independent processes show what the machine allows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.report import alternate, figure, ratios
from benchmarks.training.training_data import BATCH, bert_recipe, prepared
from tlm_client.stack.processes import free_ports


def work(pipe: Connection, core: int, rank: int, size: int, port: int, rows: int) -> None:
    """Receive numbers of steps and answer with the real tokens per second of each run; 0 ends the worker."""
    os.sched_setaffinity(0, {core})
    import torch

    from benchmarks.training.ours import Ours

    torch.set_num_threads(1)
    if size > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    ours = Ours(bert_recipe(**{"joint.batch_rows": rows}), rank=rank, world_size=size)
    while steps := pipe.recv():
        pipe.send(ours.run(steps))
    if size > 1:
        torch.distributed.destroy_process_group()


@dataclass
class Group:
    """Worker processes that run at the same time. together: they train one model; otherwise each trains its own."""

    processes: list[Any]
    pipes: list[Connection]
    together: bool

    @classmethod
    def start(cls, count: int, rows: int, *, together: bool = True) -> Group:
        context, port = multiprocessing.get_context("spawn"), free_ports(1)[0]
        cores = sorted(os.sched_getaffinity(0))
        processes: list[Any] = []
        pipes: list[Connection] = []
        for number in range(count):
            own_end, worker_end = context.Pipe()
            place = (number, count) if together else (0, 1)
            process = context.Process(target=work, args=(worker_end, cores[number], *place, port, rows), daemon=True)
            process.start()
            processes.append(process)
            pipes.append(own_end)
        return cls(processes, pipes, together)

    def run(self, steps: int) -> float:
        """Return the real tokens per second of all workers."""
        for pipe in self.pipes:
            pipe.send(steps)
        rates = [pipe.recv() for pipe in self.pipes]
        return min(rates) if self.together else sum(rates)

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(0)
            process.join(30)


def measure(groups: Mapping[str, Group], steps: int, repeats: int) -> dict[str, list[float]]:
    try:
        return alternate({name: partial(group.run, steps) for name, group in groups.items()}, repeats)
    finally:
        for group in groups.values():
            group.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    prepared()
    names = ("data_parallel_same_batch", "data_parallel_batch_each", "side_by_side")
    if len(os.sched_getaffinity(0)) < 2:
        for name in names:
            figure(name, [], goal=0.85, unit="share of twice", reason="this process can use only one core")
        return
    groups = {
        "one": Group.start(1, BATCH),
        names[0]: Group.start(2, BATCH),
        names[1]: Group.start(2, 2 * BATCH),
        names[2]: Group.start(2, BATCH, together=False),
    }
    rates = measure(groups, options.steps, options.repeats)
    figure("tokens_per_second_one_core", rates["one"], unit="real tokens/s")
    for name in names:
        shares = [ratio / 2 for ratio in ratios(rates[name], rates["one"])]
        figure(name, shares, goal=None if name == "side_by_side" else 0.85, unit="share of twice")


if __name__ == "__main__":
    main()
