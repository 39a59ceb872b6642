"""Take the screenshots in docs/screenshots: `python -m tests.integration.dashboard_screenshots`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.contract.filled_dashboard import filled_gateway
from tests.integration.browser import chromium, settle, sign_in
from tests.support import ROOT

FOLDER = ROOT / "docs" / "screenshots"
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 780}


def main() -> None:
    """Write all screenshots."""
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        filled_gateway(Path(folder)) as (gateway, contents),
        gateway.served() as url,
        chromium() as browser,
    ):
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
            ("submit-phone", "/ui/submit", "dark", PHONE),
            ("corpora-light", "/ui/corpora", "light", {"width": 1200, "height": 700}),
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
            if name.startswith("submit"):
                page.select_option("#dataset", "tickets")
                page.check("[name=kind][value=learning_curve]")
                page.wait_for_selector("#preview >> text=learning curve")
            page.screenshot(path=FOLDER / f"{name}.png", full_page=name in ("job-light", "submit-phone"))
            context.close()


if __name__ == "__main__":
    main()
