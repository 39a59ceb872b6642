"""The process group of an attempt's workers."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist


def join(name: str, host: str, port: int, rank: int, size: int, *, backend: str, timeout: timedelta) -> None:
    """Connect this worker to the other workers of the attempt `name`. Rank 0 listens at host and port.

    Each key in rank 0's store starts with the name. So ranks of another attempt on the same port cannot join the group.
    """
    store = dist.TCPStore(host, port, size, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
    keyed = dist.PrefixStore(name, store)
    dist.init_process_group(backend, store=keyed, rank=rank, world_size=size, timeout=timeout)
