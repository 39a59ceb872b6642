"""The form for a new job in headless Chromium."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.filled_dashboard import Contents
from tests.contract.gateway import Gateway
from tests.integration.browser import settle, sign_in
from tlm_core.kinds.prune import PruneOptions

T = "default"


def test_estimate_follows_the_form_and_snippets_are_copied(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{served[0]}/ui/submit?dataset=tickets&preset=best")
    page.wait_for_selector("#preview >> text=joint × 3")
    page.locator("[name=scale][value=instant]").check()
    page.wait_for_selector("#preview >> text=linear, on n-grams")
    page.get_by_text("Copy as curl").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_role("button", name="Copied").wait_for()
    assert '"scale": "instant"' in page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("scripts", [True, False])
def test_form_shows_that_the_instant_scale_uses_no_corpus_and_no_seed(
    browser: Any, served: tuple[str, Gateway, Contents], scripts: bool
) -> None:
    page = browser.new_page(java_script_enabled=scripts)
    sign_in(page, served[0])
    page.goto(f"{served[0]}/ui/submit?preset=instant&dataset=tickets")
    corpus, hint = page.locator("#corpus"), page.get_by_text("not used at scale instant")
    seeds, no_seed = page.locator("#seeds"), page.get_by_text("the scale instant uses no seed")
    # Without scripts, nothing could enable the field again at another scale.
    assert (corpus.is_disabled(), hint.is_visible()) == (scripts, True)
    assert (seeds.is_disabled(), no_seed.is_visible()) == (scripts, True)
    page.locator("[name=scale][value=tiny]").check()
    assert (seeds.is_disabled(), no_seed.is_visible(), seeds.input_value()) == (False, False, "0, 1, 2")
    assert (corpus.is_disabled(), hint.is_visible(), corpus.input_value()) == (False, False, "manuals")
    page.locator("[name=scale][value=instant]").check()
    assert (corpus.is_disabled(), hint.is_visible()) == (scripts, True)
    page.close()


def test_preset_keeps_the_typed_values(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.goto(f"{served[0]}/ui/submit?preset=best")
    page.fill("#name", "night run")
    page.fill("#overrides", "finetune.epochs = 5")
    page.select_option("#corpus", "manuals")
    page.get_by_role("link", name="Quick").click()
    assert page.locator("[name=scale]:checked").input_value() == "quick" and page.input_value("#seeds") == "0, 1, 2"
    assert page.locator(".presets [aria-current=true]").all_inner_texts()[0].startswith("Quick")
    fields = [page.input_value(field) for field in ("#name", "#overrides", "#corpus")]
    assert fields == ["night run", "finetune.epochs = 5", "manuals"]
    page.wait_for_selector("#preview >> text=5 epochs")


def test_marked_preset_follows_scale_and_seeds(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.goto(f"{served[0]}/ui/submit")
    scale, marked = "[name=scale][value={}]", page.locator(".presets [aria-current=true] strong")
    assert marked.all_inner_texts() == ["Instant"]
    page.locator("[name=kind][value=prune]").check()
    page.locator(scale.format("quick")).check()
    assert marked.all_inner_texts() == ["Quick"]
    page.fill("#seeds", "7")
    page.locator("#seeds").blur()
    assert marked.all_inner_texts() == []
    page.locator(scale.format("instant")).check()
    assert marked.all_inner_texts() == ["Instant"], "the scale instant uses no seed"


def test_recipe_key_is_added_to_the_overrides_once(page: Any, served: tuple[str, Gateway, Contents]) -> None:
    page.goto(f"{served[0]}/ui/submit?preset=best")
    settle(page)
    page.fill("#overrides", "joint.rho1 = 2")
    page.select_option("#pick", "finetune.epochs")
    for value in ("5", "6"):
        page.fill("#picked-value", value)
        page.click("[data-override]")
    assert page.input_value("#overrides") == "joint.rho1 = 2\nfinetune.epochs = 6"
    page.wait_for_selector("#preview >> text=6 epochs")


def test_study_form_works_by_keyboard_and_shows_only_its_fields(
    page: Any, served: tuple[str, Gateway, Contents]
) -> None:
    url, gateway, _ = served
    page.goto(f"{url}/ui/submit?preset=best")
    own = {
        kind: f"[id='{kind}.{option}']"
        for kind, option in {"learning_curve": "sizes", "prune": "levels", "share_tickets": "tickets"}.items()
    }
    page.locator("[name=kind][value=train]").focus()
    for kind in own:
        page.keyboard.press("ArrowDown")
        assert page.locator(f"[name=kind][value={kind}]").is_checked()
        assert [name for name, field in own.items() if page.locator(field).is_visible()] == [kind]
    page.keyboard.press("ArrowUp")
    page.select_option("#corpus", "")
    for field, text in {own["prune"]: "0.2", "#metadata": "team = search", "#priority": "3", "#minutes": "90"}.items():
        page.locator(field).focus()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type(text)
    page.get_by_role("button", name="Estimate").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#preview >> text=ticket × 9")
    page.get_by_role("button", name="Submit").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/jobs/job_*")
    spec = gateway.parts.jobs.get(T, page.url.rsplit("/", 1)[1]).spec
    assert spec.options == PruneOptions(levels=(0.2,))
    assert (spec.kind, spec.metadata, spec.priority, spec.max_runtime_seconds) == ("prune", {"team": "search"}, 3, 5400)
