"""Take the screenshots in docs/screenshots: `python -m tests.integration.dashboard_screenshots`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from services.common.redis_client import key
from tests.contract.filled_dashboard import Contents, filled_gateway
from tests.contract.gateway import Gateway
from tests.integration.browser import chromium, settle, sign_in
from tests.support import ROOT

FOLDER = ROOT / "docs" / "screenshots"
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 780}
# By the name of the job: minutes since it was submitted, and seconds that it ran.
TIMES = {
    "cancelled": (2_960, 0), "failed": (1_520, 48), "succeeded": (210, 341), "alone": (170, 139), "hostile": (96, 127),
    "paused": (2, 52), "running": (3, 74), "queued": (1, 0),
}  # fmt: skip


def make_older(gateway: Gateway, contents: Contents) -> None:
    """Give the jobs the times of real ones."""
    now = time.time()
    for name, (minutes, seconds) in TIMES.items():
        job = gateway.parts.jobs.get("default", contents.jobs[name])
        times = {"created_at": now - 60 * minutes}
        if job.running_since:
            times |= {"running_since": now - seconds, "updated_at": now + 60}
        elif job.started_at:
            times |= {"started_at": now - 60 * minutes, "ran_seconds": seconds}
        if job.started_at and job.finished_at:
            times["finished_at"] = now - 60 * minutes + seconds
        gateway.client.hset(key("default", "job", job.id), mapping=times)


def main() -> None:
    """Write all screenshots."""
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        filled_gateway(Path(folder)) as (gateway, contents),
        gateway.served() as url,
        chromium() as browser,
    ):
        make_older(gateway, contents)
        gateway.parts.models.put_alias("default", "tickets@production", contents.jobs["succeeded"])
        running, over = (f"/ui/jobs/{contents.jobs[name]}" for name in ("running", "succeeded"))
        wanted = [
            ("jobs-light", "/ui/jobs", "light", DESK),
            ("jobs-phone", "/ui/jobs", "light", PHONE),
            ("job-light", running, "light", DESK),
            ("job-phone", running, "dark", PHONE),
            ("results-light", f"{over}/results", "light", {"width": 1440, "height": 900}),
            ("models-light", "/ui/models", "light", {"width": 1200, "height": 720}),
            ("selection-light", f"{over}/selection", "light", DESK),
            ("dataset-dark", f"/ui/datasets/{contents.dataset}", "dark", DESK),
            ("submit-light", "/ui/submit", "light", {"width": 1440, "height": 1180}),
            (
                "compare-light",
                f"/ui/compare?id={contents.jobs['succeeded']}&id={contents.jobs['alone']}",
                "light",
                DESK,
            ),
        ]
        for name, path, scheme, size in wanted:
            context = browser.new_context(color_scheme=scheme, viewport=size)
            context.set_default_timeout(60_000)
            page = context.new_page()
            sign_in(page, url)
            page.goto(url + path)
            settle(page)
            if name == "submit-light":
                page.select_option("#dataset", "tickets")
                page.check("[name=kind][value=learning_curve]")
                page.wait_for_selector("#preview >> text=learning curve")
            page.screenshot(path=FOLDER / f"{name}.png", full_page=name == "job-light")
            context.close()


if __name__ == "__main__":
    main()
