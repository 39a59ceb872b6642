"""The process group of an attempt's workers."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist


def join(name: str, host: str, port: int, rank: int, size: int, *, backend: str, timeout: timedelta) -> None:
    """Connect this worker to the other workers of its submission. Rank 0 listens at host and port.

    name: JOB.GROUP.ATTEMPT. Keys in rank 0's TCPStore start with `name`, so workers of other attempts cannot join.
    """
    store = dist.TCPStore(host, port, size, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
    keyed = dist.PrefixStore(name, store)
    dist.init_process_group(backend, store=keyed, rank=rank, world_size=size, timeout=timeout)
