"""How the workers of one job find one another, and agree on what comes next.

They meet over plain sockets: preparing text needs no torch, which takes each of them seconds to import. Torch joins
them where the first stage begins that computes with it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from tlm_core.stages import WITHOUT_TORCH, Stage

# Gives every worker the value that the first passes, when all have asked for it. It waits as long as that takes, as a
# stage that the first computes alone may take hours; should a worker die, its connections break or Ray ends the rest.
Share = Callable[[Any], Any]


class Door:
    """Where the first worker awaits the others: a free port of `host`, its own address, for those with the secret."""

    def __init__(self, host: str, secret: bytes, others: int) -> None:
        self._listener = Listener((host, 0), backlog=others, authkey=secret)
        self._others = others
        self.address: tuple[str, int] = (host, self._listener.address[1])

    def open(self) -> Share:
        """Wait for all the others. Raises AuthenticationError for one who does not know the secret."""
        with self._listener:
            lines = [self._listener.accept() for _ in range(self._others)]

        def share(value: Any) -> Any:
            for line in lines:
                line.send(value)
            for line in lines:
                line.recv()
            return value

        return share


def join(address: tuple[str, int], secret: bytes) -> Share:
    """Go to where the first worker is. Raises OSError if nobody is there, AuthenticationError for another secret."""
    line: Connection = Client(address, authkey=secret)

    def share(_: Any) -> Any:
        value = line.recv()
        line.send(None)
        return value

    return share


class JoiningTorch(Mapping[str, Stage]):
    """The stages, of which the first that needs torch has the workers' torches meet, at `host`, where the first is."""

    def __init__(self, stages: Mapping[str, Stage], share: Share, host: str, rank: int, world_size: int) -> None:
        self._stages = stages
        self._share = share
        self._host = host
        self._rank = rank
        self._world_size = world_size
        self._met = False

    def __getitem__(self, name: str) -> Stage:
        if name not in WITHOUT_TORCH and not self._met:
            self._meet()
        return self._stages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def _meet(self) -> None:
        import torch
        import torch.distributed as dist

        address = self._share(None if self._rank else f"tcp://{self._host}:{_free_port(self._host)}")
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, address, rank=self._rank, world_size=self._world_size)
        self._met = True

    def part(self) -> None:
        """Have torch leave the others, if it met them: all is done."""
        if self._met:
            import torch.distributed as dist

            dist.destroy_process_group()


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
