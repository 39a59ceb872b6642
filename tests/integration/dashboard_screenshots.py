"""Take the screenshots in docs/screenshots: `python -m tests.integration.dashboard_screenshots [tutorial]`.

With `tutorial`, take pictures of the tutorial's last job on the gateway at TLM_URL, with the token TLM_TOKEN.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from services.common.redis_client import key
from tests.contract.filled_dashboard import LABELS, SEEDS, Contents, begin, filled_gateway, finish
from tests.contract.gateway import TOKEN, Gateway, T
from tests.factories import make_spec
from tests.integration.browser import chromium, settle, sign_in
from tests.support import ROOT
from tlm_client.client import TLMClient
from tlm_core.training.recipe import resolve

FOLDER = ROOT / "docs" / "screenshots"
DESK, PHONE = (1440, 900), (390, 780)
# By the name of the job: minutes since it was submitted, and seconds that it ran.
TIMES = {
    "cancelled": (2_960, 0), "failed": (1_520, 48), "succeeded": (210, 341), "alone": (170, 139), "hostile": (96, 127),
    "paused": (2, 52), "running": (3, 74), "queued": (1, 0),
}  # fmt: skip


class Shot(NamedTuple):
    """A picture of a page. size: width and height of the window. whole: the page to its end, not only the window."""

    name: str
    path: str
    size: tuple[int, int] = DESK
    scheme: str = "light"
    whole: bool = False


def add_third(gateway: Gateway, contents: Contents) -> str:
    """Add a finished job with another recipe, for a comparison of three, and return its id."""
    jobs, changes = gateway.parts.jobs, {"finetune.epochs": 20}
    resolved = jobs.get(T, contents.jobs["succeeded"]).resolved
    spec = make_spec(dataset="tickets", corpus="manuals", overrides=changes, seeds=SEEDS)
    jobs.pause(T, contents.jobs["queued"])  # otherwise `claim` returns it
    jobs.submit(T, spec, resolved.model_copy(update={"recipe": resolve("fast", "tiny", changes)}))
    job = jobs.claim("maker", 3_600)
    assert job is not None
    begin(gateway, job)
    finish(gateway, job, LABELS, skill=0.78)
    jobs.resume(T, contents.jobs["queued"])
    return job.id


def make_older(gateway: Gateway, contents: Contents) -> None:
    """Set the times of the jobs to realistic values (TIMES)."""
    now = time.time()
    for name, (minutes, seconds) in TIMES.items():
        job = gateway.parts.jobs.get(T, contents.jobs[name])
        times = {"created_at": now - 60 * minutes}
        if job.running_since:
            times |= {"running_since": now - seconds, "updated_at": now + 60}
        elif job.started_at:
            times |= {"started_at": now - 60 * minutes, "ran_seconds": seconds}
        if job.started_at and job.finished_at:
            times["finished_at"] = now - 60 * minutes + seconds
        gateway.client.hset(key(T, "job", job.id), mapping=times)


def dashboard_shots(gateway: Gateway, contents: Contents) -> Iterator[Shot]:
    """Yield the pictures of generated jobs. The job for the comparison is added last, so that no list shows it."""
    running, over, alone = (contents.jobs[name] for name in ("running", "succeeded", "alone"))
    yield Shot("jobs-light", "/ui/jobs")
    yield Shot("jobs-phone", "/ui/jobs", PHONE)
    yield Shot("job-light", f"/ui/jobs/{running}", whole=True)
    yield Shot("job-phone", f"/ui/jobs/{running}", PHONE, "dark")
    yield Shot("results-light", f"/ui/jobs/{over}/results", whole=True)
    yield Shot("models-light", "/ui/models", (1200, 720))
    yield Shot("selection-light", f"/ui/jobs/{over}/selection")
    yield Shot("dataset-dark", f"/ui/datasets/{contents.dataset}", scheme="dark")
    yield Shot("submit-light", "/ui/submit?preset=best", (1440, 1180))
    yield Shot("compare-light", f"/ui/compare?id={over}&id={alone}&id={add_third(gateway, contents)}")


@contextmanager
def generated() -> Iterator[tuple[str, str, Iterable[Shot]]]:
    """Yield URL and token of a gateway with generated jobs, and the pictures of the dashboard to take."""
    with tempfile.TemporaryDirectory() as folder, filled_gateway(Path(folder)) as (gateway, contents):
        make_older(gateway, contents)
        gateway.parts.models.put_alias(T, "tickets@production", contents.jobs["succeeded"])
        with gateway.served() as url:
            yield url, TOKEN, dashboard_shots(gateway, contents)


@contextmanager
def tutorial() -> Iterator[tuple[str, str, Iterable[Shot]]]:
    """Yield URL and token of the gateway that ran the tutorial, and the pictures of its last job to take."""
    url, token = os.environ["TLM_URL"], os.environ["TLM_TOKEN"]
    with TLMClient(url, token) as client:
        job = next(job.id for job in client.jobs() if (job.dataset, job.scale) == ("questions", "quick"))
    size = (1280, 860)
    yield (
        url,
        token,
        [
            Shot("tutorial-results", f"/ui/jobs/{job}/results", size, whole=True),
            Shot("tutorial-passages", f"/ui/jobs/{job}/selection#texts", size),
        ],
    )


def take(browser: Any, url: str, token: str, shot: Shot) -> None:
    """Write one picture."""
    width, height = shot.size
    context = browser.new_context(color_scheme=shot.scheme, viewport={"width": width, "height": height})
    context.set_default_timeout(60_000)
    page = context.new_page()
    sign_in(page, url, token)
    page.goto(url + shot.path)
    settle(page)
    if shot.name == "submit-light":
        page.select_option("#dataset", "tickets")
        page.select_option("#corpus", "manuals")
        page.check("[name=kind][value=learning_curve]")
        page.wait_for_selector("#preview table >> text=curve")
    page.screenshot(path=FOLDER / f"{shot.name}.png", full_page=shot.whole)
    context.close()


def main() -> None:
    """Write all pictures of the dashboard, or those of the tutorial."""
    FOLDER.mkdir(exist_ok=True)
    source = tutorial if sys.argv[1:] == ["tutorial"] else generated
    with source() as (url, token, shots), chromium() as browser:
        for shot in shots:
            take(browser, url, token, shot)


if __name__ == "__main__":
    main()
