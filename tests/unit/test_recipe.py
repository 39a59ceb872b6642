"""Recipes: presets are valid, overrides are validated, and errors name the key."""

from __future__ import annotations

from typing import Any

import pytest

from tlm_core.errors import InvalidRecipe
from tlm_core.training import recipe as recipes
from tlm_core.training.recipe import PUBLISHED_LR, Finetune, Recipe, native_precision, resolve
from tlm_core.training.recipe_keys import recipe_keys

SCALES = ("tiny", "small", "medium", "large")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["fast", "paper"])
def test_every_preset_is_valid_and_survives_json(name: str, scale: str) -> None:
    recipe = resolve(name, scale)
    assert (recipe.name, recipe.scale) == (name, scale)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_paper_recipe_matches_the_release() -> None:
    recipe = resolve("paper", "small")
    assert (recipe.model.layers, recipe.model.hidden, recipe.model.architecture) == (12, 768, "electra")
    assert (recipe.tokenizer.published, recipe.tokenizer.may_be_own) == ("hub:google-bert/bert-base-uncased", True)
    assert recipe.joint.budget.steps == 150_000
    assert recipe.joint.optimizer.eps == recipe.finetune.optimizer.eps == 1e-6
    assert (recipe.joint.rho1, recipe.joint.rho2, recipe.joint.mask_rate) == (999, 20, 0.15)
    optimizer = recipe.joint.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.clip) == (1e-4, 0.01, None)
    assert (recipe.finetune.steps(515), recipe.finetune.evaluations, recipe.finetune.reset_head) == (30_000, 30, True)
    assert (recipe.finetune.optimizer.lr, recipe.finetune.optimizer.weight_decay) == (2e-5, 0.0)


@pytest.mark.parametrize(
    ("scale", "layers", "steps", "rows", "rho1", "top_k"),
    [
        ("small", 12, 150_000, 256, 999, 5_000),
        ("medium", 12, 300_000, 256, 999, 5_000),
        ("large", 24, 300_000, 512, 1_999, 10_000),
    ],
)
def test_scales_of_the_paper_have_own_schedules(
    scale: str, layers: int, steps: int, rows: int, rho1: int, top_k: int
) -> None:
    recipe = resolve("paper", scale)
    joint = recipe.joint
    assert (recipe.model.layers, joint.budget.steps, joint.batch_rows) == (layers, steps, rows)
    assert (joint.rho1, joint.rho2, recipe.selection.top_k) == (rho1, 20, top_k)
    assert joint.optimizer.warmup * steps == pytest.approx(10_000)


def test_override_replaces_a_budget_in_another_unit() -> None:
    budget = resolve("fast", "tiny", {"joint.budget.steps": 7}).joint.budget
    assert (budget.steps, budget.tokens) == (7, None)


def test_small_task_trains_for_at_most_twice_the_epochs() -> None:
    finetune = Finetune(epochs=5, batch=32, min_steps=500)
    assert [finetune.steps(rows) for rows in (1, 450, 1_688, 3_219)] == [2, 142, 500, 503]
    assert finetune.model_copy(update={"max_steps": 100}).steps(1_688) == 100
    assert resolve("fast", "quick").finetune.min_steps == 500 and resolve("fast", "tiny").finetune.min_steps is None


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 700),
        ({"finetune.max_steps": 900}, 900),
        ({"finetune.max_steps_after_joint": 800}, 800),
        ({"joint.enabled": False}, 3_542),
        ({"joint.task_loss": False}, 3_542),
        ({"model.init": "hub:a/b", "tokenizer.source": "hub:a/b"}, 3_542),
    ],
)
def test_preset_limits_finetuning_after_a_joint_stage_only(changes: dict[str, Any], steps: int) -> None:
    assert resolve("fast", "tiny", changes).finetuning.steps(11_333) == steps


def test_published_encoder_gets_a_lower_rate_by_default() -> None:
    published = {"model.init": "hub:a/b", "tokenizer.source": "hub:a/b"}
    assert resolve("fast", "tiny").finetune.optimizer.lr == 1e-3
    assert resolve("fast", "tiny", published).finetune.optimizer.lr == PUBLISHED_LR
    assert resolve("fast", "tiny", published | {"finetune.optimizer.lr": 2e-3}).finetune.optimizer.lr == 2e-3
    assert resolve("paper", "tiny", published).finetune.optimizer.lr == 1e-4, "a lower rate stays"


def test_published_encoder_caps_default_rates_only() -> None:
    published = {"model.init": "hub:a/b", "tokenizer.source": "hub:a/b"}
    part = resolve("fast", "tiny", {"finetune.rates": [1e-3, 1e-4, 2e-3]}).finetune
    assert part.rates == (1e-3, 1e-4, 2e-3)
    assert part.for_published().rates == (PUBLISHED_LR, 1e-4)
    alone = part.model_copy(update={"rates": (1e-3, 2e-3)}).for_published()
    assert (alone.rates, alone.optimizer.lr) == ((), PUBLISHED_LR)
    assert resolve("fast", "tiny", published | {"finetune.rates": [1e-3, 2e-3]}).finetune.rates == (1e-3, 2e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"finetune.rates": [1e-3]}, "two or more different rates"),
        ({"finetune.rates": [1e-3, 0.001]}, "two or more different rates"),
        ({"finetune.rates": [1e-3, 0]}, "finetune.rates.1"),
        ({"joint.rho11": 1}, "joint.rho1"),
        ({"xyzzy": 1}, "Valid keys"),
        ({"Finetune.Epoch": 1}, "Did you mean 'finetune.epochs'?"),
        ({"joint": {}}, "Unknown recipe key 'joint'"),
        ({"name": "paper"}, "Unknown recipe key 'name'. (?!Did you mean 'name')"),
        ({"joint.mask_rate": [0.1]}, "joint.mask_rate"),
        ({"joint.mask_rate": 1.5}, "joint.mask_rate"),
        ({"model.heads": 5}, "heads"),
        ({"joint.budget.steps": 0}, "joint.budget.steps"),
        ({"tokenizer.source": "whatever"}, "tokenizer.source"),
        ({"tokenizer.source": "/models/\0", "model.init": "/models/\0"}, "(?s)tokenizer.source.*model.init"),
        ({"tokenizer.source": "hub:a/b@\x7f", "model.init": "hub:a/b@\0"}, "(?s)tokenizer.source.*model.init"),
        ({"selection.selector": "tfidf"}, "selection.selector"),
        ({"selection.selector": "whole", "selection.query": "rake"}, "'whole' does not use 'query'"),
        ({"selection.selector": "given", "selection.unique_terms": True}, "'given' does not use 'unique_terms'"),
        ({"selection.selector": "dsir", "selection.per_query_cap": 3}, "'dsir' does not use 'per_query_cap'.*bm25"),
        ({"selection.per_label_balance": True}, "Set max_passages or max_tokens"),
        ({"selection.per_query_cap": 0}, "selection.per_query_cap"),
        ({"selection.max_tokens": 0}, "selection.max_tokens"),
        ({"joint.optimizer.betas": [0.9, 1.0]}, "joint.optimizer.betas"),
        ({"finetune.optimizer.betas": [-0.1, 0.9]}, "finetune.optimizer.betas"),
        (
            {"selection.selector": "none", "joint.task_loss": False, "joint.mlm_on_task": False},
            "Set one of them to true, or joint.enabled to false",
        ),
    ],
)
def test_invalid_override_is_named_in_the_error(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecipe, match=message):
        resolve("fast", "tiny", overrides)


def test_key_with_a_flag_or_auto_has_three_choices() -> None:
    keys = {entry.key: entry for entry in recipe_keys(resolve("fast", "quick"))}
    assert keys["joint.bag_of_words"].choices == ("auto", "true", "false")
    scales = ("quick", "tiny", "small")
    assert [resolve("fast", scale).joint.bag_of_words for scale in scales] == ["auto", False, False]
    assert resolve("fast", "quick", {"joint.bag_of_words": False}).joint.bag_of_words is False


def test_unknown_recipe_and_scale_list_the_valid_names() -> None:
    with pytest.raises(InvalidRecipe, match="Valid recipes: fast, paper"):
        resolve("quick", "tiny")
    with pytest.raises(InvalidRecipe, match="tiny, small, medium, large"):
        resolve("fast", "huge")
    with pytest.raises(InvalidRecipe, match=r"Unknown scale 'smal'\. Did you mean 'small'\?"):
        resolve("fast", "smal")


def test_stored_recipe_that_is_now_invalid_stays_readable() -> None:
    stored = resolve("fast", "tiny").model_dump(mode="json")
    stored["joint"]["optimizer"]["betas"] = [0.9, 1.0]
    stored["selection"]["selector"] = "none"
    stored["joint"] |= {"task_loss": False, "mlm_on_task": False}
    assert Recipe.model_validate(stored).joint.optimizer.betas == (0.9, 1.0)


@pytest.mark.parametrize(
    ("flags", "native"), [("avx2 avx512f", "fp32"), ("avx512f avx512_bf16", "bf16"), ("amx_bf16 avx2", "bf16")]
)
def test_job_gets_the_precision_of_the_setting_or_else_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, flags: str, native: str
) -> None:
    monkeypatch.setattr(recipes, "cpu_facts", lambda: ["model name : x", f"flags : {flags}"])
    monkeypatch.setattr(recipes, "native_precision", native_precision.__wrapped__)
    assert resolve("fast", "tiny").precision == native
    other = {"fp32": "bf16", "bf16": "fp32"}[native]
    assert resolve("fast", "tiny", precision=other).precision == other  # type: ignore[arg-type]
    assert resolve("fast", "tiny", {"precision": native}, precision=other).precision == native  # type: ignore[arg-type]
