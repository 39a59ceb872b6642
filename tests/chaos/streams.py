"""`python -m tests.chaos.streams [CLIENTS]`: event streams while gateways are killed.

Run this with one gateway, and with three. Clients close their connections at random, and reconnect to any gateway.
Each client must receive all events of the job, in order and once.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from services.common.archive import Archive
from tests.chaos.harness import Chaos, say
from tests.chaos.ray import send
from tests.contract.gateway import T
from tests.factories import make_resolved, make_spec
from tlm_core.jobs.spec import JobRecord

_PATIENCE = 300.0


@dataclass
class Follower:
    """A client of the job's event stream. seen: the received events. cuts: connections that ended before the stream."""

    urls: list[str]
    token: str
    job: str
    rng: random.Random
    seen: list[int] = field(default_factory=list)
    cuts: int = 0

    async def follow(self, client: httpx.AsyncClient) -> None:
        while True:
            with suppress(httpx.HTTPError):
                if await self._read(client, self.rng.randint(1, 150)):
                    return
            self.cuts += 1
            await asyncio.sleep(self.rng.uniform(0.0, 1.0))

    async def _read(self, client: httpx.AsyncClient, count: int) -> bool:
        """Read up to `count` events. Returns whether the stream has ended."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "text/event-stream"}
        headers |= {"Last-Event-ID": str(self.seen[-1])} if self.seen else {}
        url = f"{self.rng.choice(self.urls)}/v1/jobs/{self.job}/events"
        async with client.stream("GET", url, headers=headers) as answer:
            answer.raise_for_status()
            number = 0  # An event counts once its frame is complete.
            async for line in answer.aiter_lines():
                if line == "event: end":
                    return True
                if line.startswith("id: "):
                    number = int(line[4:])
                elif not line and number:
                    self.seen.append(number)
                    number, count = 0, count - 1
                    if not count:
                        return False
        return False


async def _follow_all(followers: list[Follower]) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=20, limits=limits, trust_env=False) as client, asyncio.timeout(_PATIENCE):
        await asyncio.gather(*(follower.follow(client) for follower in followers))


def _write_and_kill(chaos: Chaos, job: JobRecord, rng: random.Random, events: int, kills: int) -> None:
    """Write events, kill gateways meanwhile, and end the job."""
    for number in range(events):
        chaos.store.report(T, job.id, 1, events=[("tick", {"n": number})])
        if number % (events // kills) == events // kills // 2:
            send(chaos.processes["gateway", rng.randrange(chaos.gateways)], signal.SIGKILL)
        time.sleep(rng.uniform(0.0, 0.06))
    chaos.store.finish(job, "a", {})
    Archive(chaos.store).mark_streams()
    Archive(chaos.store).move_marked()


def run(folder: Path, clients: int, gateways: int, events: int = 600, kills: int = 6, seed: int = 1) -> list[str]:
    """Return a line for each client that has not received all events in order and once."""
    chaos = Chaos(folder, coordinators=0, gateways=gateways)
    with chaos.running():
        chaos.add_dataset()
        chaos.store.submit(T, make_spec(), make_resolved())
        job = chaos.store.claim("a", 600)
        assert job is not None
        token = (folder / "token").read_text().strip()
        followers = [Follower(chaos.urls, token, job.id, random.Random(seed * 1000 + n)) for n in range(clients)]
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(_write_and_kill, chaos, job, random.Random(seed), events, kills)
            asyncio.run(_follow_all(followers))
            writing.result()
        log = [event.seq for event in chaos.store.events(T, job.id, limit=100_000)]
    cuts = sum(follower.cuts for follower in followers)
    say(f"{gateways} gateways, {kills} killed: {clients} clients, cut {cuts} times; {len(log)} events")
    return [
        f"client {n} misses {len(set(log) - set(f.seen))} events, and saw {len(f.seen) - len(set(f.seen))} again"
        for n, f in enumerate(followers)
        if f.seen != log
    ]


def main() -> int:
    clients, wrong = int(sys.argv[1]) if len(sys.argv) > 1 else 300, list[str]()
    for gateways in (1, 3):
        wrong += run(Path(tempfile.mkdtemp(prefix="streams-")), clients, gateways)
    say("\n".join(wrong) or "Every client saw the whole log, in order and once.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
