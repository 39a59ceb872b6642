"""The asyncio client on a real gateway."""

from __future__ import annotations

import asyncio
import tarfile
from pathlib import Path

import pytest
import redis

from tests.contract.gateway import TOKEN, TRAIN, make_gateway
from tests.contract.job_results import complete
from tlm_client.async_client import AsyncTLMClient
from tlm_core.errors import NotFound
from tlm_core.jobs.spec import JobSpec

SPEC = JobSpec(dataset="toy", overrides={"selection.selector": "none"})


def test_jobs_are_submitted_watched_and_downloaded_concurrently(redis_client: redis.Redis, tmp_path: Path) -> None:
    gateway = make_gateway(redis_client, tmp_path)
    store = gateway.parts.jobs
    (tmp_path / "train.csv").write_text(TRAIN)

    def run_jobs(count: int) -> None:
        for _ in range(count):
            job = store.claim("a", 60)
            assert job is not None
            store.report("default", job.id, 1, logs=["line 1", "line\u2028 2"])
            complete(store, gateway.parts.artifacts, job, gateway.root)
            store.finish(job, "a", {})

    async def use(url: str) -> None:
        async with AsyncTLMClient(url, TOKEN) as tlm:
            dataset = await tlm.add_dataset("toy", {"train": tmp_path / "train.csv"}, in_parts_from=1)
            assert [item.id async for item in tlm.datasets()] == [dataset.id]
            jobs = await asyncio.gather(*(tlm.submit(SPEC.model_copy(update={"seeds": (n,)})) for n in range(4)))
            waiting = asyncio.gather(*(tlm.wait(job.id) for job in jobs))
            await asyncio.to_thread(run_jobs, 4)
            assert {job.state for job in await waiting} == {"succeeded"}
            job_id = jobs[0].id
            assert [line.line async for line in tlm.follow_logs(job_id)] == ["line 1", "line\u2028 2"]
            events = [event.type async for event in tlm.events(job_id) if event.seq]
            assert events[0] == "job.submitted" and events[-1] == "job.succeeded"
            files = await tlm.download(job_id, tmp_path / "model")
            assert {file.name for file in files} >= {"model.onnx", "labels.json"}
            with tarfile.open(await tlm.download_archive(job_id, tmp_path / "all.tar")) as archive:
                members = {member.name: archive.extractfile(member) for member in archive}
                for file in files:
                    member = members[f"{job_id}/{file.relative_to(tmp_path / 'model')}"]
                    assert member is not None and member.read() == file.read_bytes()
                assert len(members) == len(files)
            assert [p.label for p in (await tlm.predict(job_id, ["good", "bad"])).data] == ["good", "bad"]
            async for event in tlm.events(job_id):
                assert event.seq == 1
                break
            with pytest.raises(NotFound):
                await tlm.job("job_nope")

    with gateway.served() as url:
        asyncio.run(asyncio.wait_for(use(url), 120))
