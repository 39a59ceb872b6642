"""The process group of a job with several workers: rendezvous, broadcast, and the start of torch's process group.

The workers meet over plain sockets, because preparing text needs no torch, whose import takes seconds. Torch's process
group starts with the first stage that needs torch.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:  # The program must not import what only its workers need.
    from tlm_core.training.stage import Stage, StageFunction

T = TypeVar("T")
COLLECTIVE_MINUTES = 15  # longer than a rank waits for the storage


class Broadcast(Protocol):
    """Returns the value of rank 0 on every rank once all ranks have called it.

    There is no timeout, because a stage that rank 0 computes alone may take hours. If a worker dies, its connections
    break or Ray ends the others.
    """

    def __call__(self, value: T, /) -> T: ...


class Rendezvous:
    """The address at which rank 0 waits for the `others` ranks: a free port of its own `host`."""

    def __init__(self, host: str, secret: bytes, others: int) -> None:
        self._listener = Listener((host, 0), backlog=others, authkey=secret)
        self._others = others
        self.address: tuple[str, int] = (host, self._listener.address[1])

    def wait(self) -> Broadcast:
        """Wait for all other ranks. Raises AuthenticationError if one has another secret."""
        with self._listener:
            connections = [self._listener.accept() for _ in range(self._others)]

        def broadcast(value: T) -> T:
            for connection in connections:
                connection.send(value)
            for connection in connections:
                connection.recv()
            return value

        return broadcast


def join(address: tuple[str, int], secret: bytes) -> Broadcast:
    """Connect to rank 0. Raises OSError if it does not listen, AuthenticationError if it has another secret."""
    connection: Connection = Client(address, authkey=secret)

    def broadcast(_: T) -> T:
        value: T = connection.recv()
        connection.send(None)
        return value

    return broadcast


class StageLoader:
    """Loads stages. Before the first stage that needs torch, it starts torch's process group, with rank 0 at `host`."""

    def __init__(self, broadcast: Broadcast, host: str, rank: int, world_size: int) -> None:
        self._broadcast = broadcast
        self._host = host
        self._rank = rank
        self._world_size = world_size
        self._initialized = False

    def __call__(self, stage: Stage) -> StageFunction:
        if stage.needs_torch and not self._initialized:
            self._init_process_group()
        return stage.load()

    def _init_process_group(self) -> None:
        import torch
        import torch.distributed as dist

        address = self._broadcast(None if self._rank else f"tcp://{self._host}:{_free_port(self._host)}")
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, address, timedelta(minutes=COLLECTIVE_MINUTES), rank=self._rank, world_size=self._world_size
        )
        self._initialized = True

    def close(self) -> None:
        """Destroy torch's process group, if it was started."""
        if self._initialized:
            import torch.distributed as dist

            dist.destroy_process_group()


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
