"""All stages of training on a generated task, and their artifacts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.unit.training.made import LABELS, made_prepared, made_selection, made_task, report_of, run_chain, tiny
from tlm_core import stages as shared_stages
from tlm_core.artifacts import MANIFEST
from tlm_core.errors import InvalidRecipe
from tlm_core.evaluation import report as report_module
from tlm_core.evaluation.combine import Choice
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds import learning_curve, prune, share_tickets, train
from tlm_core.linear.params import SelfTrainParams
from tlm_core.pulse import PULSE
from tlm_core.serving import load_model as load_served
from tlm_core.stages import CHOOSE, FINETUNE, SELF_TRAIN
from tlm_core.tasks.metrics import score
from tlm_core.tasks.task import Task
from tlm_core.training.card import model_card
from tlm_core.training.export import PROBES, write_export
from tlm_core.training.local import run_stage
from tlm_core.training.params import CardRecipe, ChooseParams, FinetuneParams, JointParams, PrepareParams
from tlm_core.training.prepared import Prepared
from tlm_core.training.recipe import Recipe, resolve
from tlm_core.training.stage import Place, Stage, StageParams
from tlm_core.training.state import HISTORY, WEIGHTS, load_model, weights

RECIPE = tiny(
    self_training__amounts=(3,),
    model__hidden=64,
    joint__budget__steps=40,
    finetune__epochs=4,
    finetune__optimizer__lr=1e-3,
    precision="fp32",
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("chain")
    task, selection = made_task(folder / "task", (90, 30, 60)), made_selection(folder / "selection")
    return {"task": task, "selection": selection, **run_chain(task, selection, RECIPE, [0, 1], folder / "run")}


def test_report_has_scores_per_seed_with_mean_and_spread(chain: Mapping[str, Path]) -> None:
    report = report_of(chain)
    assert [entry["seed"] for entry in report["seeds"]] == [0, 1]
    scores, encoder = [entry["test"]["macro_f1"] for entry in report["seeds"]], report["models"]["encoder"]
    assert encoder["mean"]["test"]["macro_f1"] == pytest.approx(np.mean(scores))
    assert encoder["spread"]["test"]["macro_f1"] == pytest.approx(np.std(scores, ddof=1))
    assert report["mean"]["test"]["macro_f1"] > report["majority"]["test"]["macro_f1"] + 0.1
    best = max(report["seeds"], key=lambda entry: entry["validation"]["macro_f1"])
    assert report["best_seed"] == best["seed"]
    assert report["seeds"][0]["test"]["deduplicated"]["rows"] <= 60


def test_report_has_the_cost_of_every_stage(chain: Mapping[str, Path]) -> None:
    cost = report_of(chain)["cost"]
    assert list(cost) == ["baseline", "self_train", "prepare", "joint", "finetune", "refit", "total"]
    for name in ("flops", "tokens", "seconds"):
        assert cost["total"][name] == pytest.approx(sum(cost[stage][name] for stage in list(cost)[:-1]))
        assert cost["total"][name] > 0
    assert cost["total"]["gpu_seconds"] == 0.0


def test_joint_stage_has_a_validation_curve_that_selects_nothing(chain: Mapping[str, Path]) -> None:
    history = json.loads((chain["joint.s0"] / "history.json").read_text())
    steps = [entry["step"] for entry in history["evaluations"]]
    assert len(steps) == 5 and steps == sorted(set(steps)) and history["best"] is None
    assert all(entry["loss"] > 0 for entry in history["evaluations"])


def test_stock_classes_reproduce_the_score_of_the_encoder(chain: Mapping[str, Path]) -> None:
    folder = chain["export"] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    task, report = Task.read(chain["task"]), report_of(chain)
    assert {"calibration", "risk_coverage", "suspects"} <= set(report)
    with torch.inference_mode():
        inputs = tokenizer(task.texts("test"), truncation=True, padding=True, return_tensors="pt")
        answers = model(**inputs).logits.argmax(dim=-1).numpy()
    assert [model.config.id2label[i] for i in range(3)] == list(LABELS)
    scores = score(task.label_ids("test"), answers, 3, "macro_f1")
    best = next(entry for entry in report["seeds"] if entry["seed"] == report["best_seed"])
    assert scores["macro_f1"] == pytest.approx(best["models"]["encoder"]["test"]["macro_f1"], abs=1e-4)


@pytest.mark.parametrize("returned", ["linear", "self_trained", "ensemble", "combined"])
def test_exported_file_scores_what_the_report_says(
    chain: Mapping[str, Path], returned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "choose", lambda *_: Choice(returned, "The test chooses it."))
    nodes = {node.name: node for node in train.plan(PlanInputs(KindOptions(), RECIPE, (0, 1), (), (), "c@1")).nodes}
    done = {**chain, "validate": chain["task"]}
    for name in ("evaluate", "export"):
        inputs = {key: done[source] for key, source in nodes[name].inputs.items()}
        done[name] = run_stage(nodes[name].stage, inputs, nodes[name].params, tmp_path / name)
    task, report = Task.read(chain["task"]), report_of(done)
    answers = load_served(done["export"]).probabilities(task.texts("test")).argmax(axis=1)
    encoders = [] if returned in ("linear", "self_trained") else [0, 1]
    assert report["returned"]["model"] == returned and report["returned"]["seeds"] == encoders
    expected = report["returned"]["scores"]["test"]["macro_f1"]
    assert score(task.label_ids("test"), answers, 3, "macro_f1")["macro_f1"] == pytest.approx(expected, abs=1e-4)
    assert report["mean"]["test"]["macro_f1"] == expected
    assert ("max_length" in json.loads((done["export"] / "labels.json").read_text())) == bool(encoders)
    if returned == "ensemble":  # two encoders in half precision are as large as one
        sizes = [(done["export"] / name).stat().st_size for name in ("model.onnx", "model/model.safetensors")]
        assert sizes[0] < 1.2 * sizes[1]


def test_report_omits_a_self_trained_model_that_keeps_the_baseline(chain: Mapping[str, Path], tmp_path: Path) -> None:
    nodes = {node.name: node for node in train.plan(PlanInputs(KindOptions(), RECIPE, (0, 1), (), (), "c@1")).nodes}
    done = {**chain, "validate": chain["task"]}
    inputs = {key: done[source] for key, source in nodes["self_train"].inputs.items()}
    done["self_train"] = run_stage(SELF_TRAIN, inputs, SelfTrainParams(amounts=(0.0,)), tmp_path / "self_train")
    inputs = {key: done[source] for key, source in nodes["evaluate"].inputs.items()}
    done["evaluate"] = run_stage(nodes["evaluate"].stage, inputs, nodes["evaluate"].params, tmp_path / "evaluate")
    report = report_of(done)
    assert "linear" in report["models"] and "self_trained" not in report["models"]
    assert 0 < report["cost"]["self_train"]["seconds"] != report["cost"]["baseline"]["seconds"]


@pytest.mark.parametrize("name", ["prepare", "evaluate"])
def test_hang_between_texts_is_noticed_as_in_training(
    chain: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    paces: list[tuple[bool, bool]] = []
    monkeypatch.setattr(PULSE, "advance", lambda: paces.append((PULSE.steady, PULSE.warm)))
    monkeypatch.setattr("tlm_core.training.evaluate.DOCUMENTS", 8)
    monkeypatch.setattr("tlm_core.training.prepare.BATCH", 8)
    plan = train.plan(PlanInputs(KindOptions(), RECIPE, (0, 1), (), (), "c@1"))
    node, done = plan.node(name), {**chain, "validate": chain["task"], "select": chain["selection"]}
    run_stage(node.stage, {key: done[source] for key, source in node.inputs.items()}, node.params, tmp_path / name)
    assert paces.count((True, True)) > 0.4 * len(paces) > 4
    assert (PULSE.steady, PULSE.warm) == (False, False)


def test_without_ensemble_the_file_has_one_seed(chain: Mapping[str, Path], tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"ensemble": False})
    nodes = {node.name: node for node in train.plan(PlanInputs(KindOptions(), recipe, (0, 1), (), (), "c@1")).nodes}
    done, node = {**chain, "validate": chain["task"]}, nodes["evaluate"]
    inputs = {key: done[source] for key, source in node.inputs.items()}
    folder = run_stage(node.stage, inputs, node.params, tmp_path / "evaluate")
    report = json.loads((folder / "report.json").read_text())
    assert report["returned"]["seeds"] == [report["best_seed"]] and "ensemble" not in report["models"]
    assert report["mean"]["test"]["macro_f1"] == np.mean([entry["test"]["macro_f1"] for entry in report["seeds"]])


def test_export_predicts_only_the_texts_that_it_compares(chain: Mapping[str, Path], tmp_path: Path) -> None:
    model, prepared, seen = load_model(chain["finetune.s0"]), Prepared(chain["prepare"]), []
    model.task.register_forward_pre_hook(lambda _, pooled: seen.append(len(pooled[0])))
    recipe = CardRecipe.of(RECIPE)
    write_export(tmp_path, model, weights(model), prepared, Task.read(chain["task"]), report_of(chain), recipe)
    # The export compares the logits of the first PROBES validation texts only.
    assert sum(seen) == PROBES < len(prepared.split("validation"))


def test_exported_folder_has_safetensors_and_no_code(chain: Mapping[str, Path]) -> None:
    names = {str(path.relative_to(chain["export"])) for path in chain["export"].rglob("*") if path.is_file()}
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    linear = {f"linear/{name}" for name in ("model.onnx", "labels.json", "ngrams.json")}
    alphabet = set() if report_of(chain)["returned"]["model"] == "ensemble" else {"ngrams.json"}
    expected = {f"model/{name}" for name in model} | {"model.onnx", "labels.json", "report.json"}
    assert names == expected | linear | alphabet


def test_card_states_scores_cost_recipe_and_memorization_risk(chain: Mapping[str, Path]) -> None:
    card, report = (chain["export"] / "model" / "README.md").read_text(), report_of(chain)
    encoder = report["models"]["encoder"]
    assert f"{encoder['mean']['test']['macro_f1']:.4f} ± {encoder['spread']['test']['macro_f1']:.4f}" in card
    assert f"{report['cost']['total']['flops']:.3g}" in card
    returned = report["returned"]["model"]
    file = "model.onnx" if returned in ("linear", "self_trained") else "model.onnx, seeds 0, 1"
    row = next(line for line in card.splitlines() if line.startswith(f"| test, {returned} |"))
    assert row.endswith(f"| {file} |") and card.count("| model.onnx") == 1
    assert all(f"| test, {name} |" in card for name in ("always the most frequent label", "linear", "encoder"))
    assert f"These weights are the encoder of seed {report['best_seed']}" in card and report["gain"]["words"] in card
    stock, seed = report["models"]["stock"]["mean"]["test"]["macro_f1"], report["best_seed"]
    assert f"| test, stock | {stock:.4f} |" in card and f"| model/, seed {seed} |" in card
    best = next(entry for entry in report["seeds"] if entry["seed"] == seed)
    assert stock == best["models"]["encoder"]["test"]["macro_f1"]
    assert "Validation decides by macro-F1. A score with ± is the mean over the seeds 0 and 1, with its" in card
    assert "(s)" not in card and "{" not in card[: card.index("## Recipe")]
    assert "memorized" in card and '"rho1": 3.0' in card and "150 (" in card
    assert all(f". {label}" in card for label in LABELS)


def test_card_shows_label_names_without_their_markup(chain: Mapping[str, Path]) -> None:
    names = ["<b>", "&lt;b&gt;", "~~x~~", "- list", "2. two", "1) one", "+ plus", "---", "a|b", "`c`", "-5", ".net"]
    facts = json.loads((chain["prepare"] / "data.json").read_text()) | {"labels": names}
    card = model_card(report_of(chain), facts, CardRecipe.of(RECIPE))
    section = card[card.index("## Labels") : card.index("## Scores")]
    html = MarkdownIt("commonmark").enable("strikethrough").render(section)
    assert [unescape(item) for item in re.findall("<li>(.*)</li>", html)] == names


ALONE = {"selection__selector": "none", "joint__enabled": False}
TWO_STAGES = {"joint__task_loss": False, "joint__mlm_on_task": False, "selection__selector": "random"}
ENCODER = {"model__init": "hub:one/encoder", "tokenizer__source": "hub:one/encoder"}


@pytest.mark.parametrize(
    ("over", "course", "data"),
    [
        ({}, "by masked language modeling and bag-of-words prediction on passages and the task's texts together with "
         "the task's loss, then by", "retrieved by queries from the train texts"),
        ({"joint__bag_of_words": False}, "by masked language modeling on passages and the task's texts together", ""),
        (ALONE, "trained from scratch by the task's loss alone.", "no passages"),
        (TWO_STAGES, "modeling and bag-of-words prediction on passages, then by the task's loss", "drawn at random"),
        ({"joint__rho2": 0.0}, "modeling and bag-of-words prediction on passages together with the task's loss", ""),
        ({**ENCODER, "selection__selector": "given"}, "trained from the published encoder hub:one/encoder by masked",
         "uploaded with the dataset"),
    ],
)  # fmt: skip
def test_card_describes_how_the_model_was_trained(
    chain: Mapping[str, Path], over: dict, course: str, data: str
) -> None:
    facts = json.loads((chain["prepare"] / "data.json").read_text())
    if over is ALONE:
        facts["passages"] = 0
    card = model_card(report_of(chain), facts, CardRecipe.of(tiny(**over)))
    assert course in card and data in card
    assert ("trained-from-scratch" in card) == ("model__init" not in over)


def test_onnx_graph_accepts_any_batch_and_length(chain: Mapping[str, Path], tmp_path: Path) -> None:
    trained, task, recipe = load_model(chain["finetune.s0"]), Task.read(chain["task"]), CardRecipe.of(RECIPE)
    write_export(tmp_path, trained, weights(trained), Prepared(chain["prepare"]), task, report_of(chain), recipe)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    random = torch.Generator().manual_seed(0)
    for shape in ((1, 3), (5, 40)):
        tokens = torch.randint(5, 170, shape, generator=random)
        mask = torch.ones_like(tokens)
        mask[0, 2:] = 0
        inputs = {"input_ids": tokens[:, None].numpy(), "attention_mask": mask[:, None].numpy()}
        logits, probabilities = session.run(["logits", "probabilities"], inputs)
        with torch.inference_mode():
            expected = model(input_ids=tokens, attention_mask=mask).logits
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(probabilities), expected.softmax(-1), atol=1e-4, rtol=1e-4)


def test_pair_task_without_selection_trains_a_bert(tmp_path: Path) -> None:
    recipe = tiny(model__architecture="bert", joint__enabled=False, finetune__evaluations=2, finetune__max_steps=4)
    task = made_task(tmp_path / "task", pair=True)
    done = run_chain(task, None, recipe, [3], tmp_path / "run")
    assert "joint.s3" not in done
    report = report_of(done)
    assert list(report["cost"]) == ["baseline", "prepare", "finetune", "refit", "total"]
    assert report["spread"]["reason"] and report["spread"]["test"]["macro_f1"] is None
    written = Task.read(task)
    tokenizer = AutoTokenizer.from_pretrained(done["export"] / "model")
    inputs = tokenizer(written.texts("test"), written.text_pairs("test"), truncation="longest_first", max_length=48)
    split = Prepared(done["prepare"]).split("test")
    assert split.second is not None
    for number, tokens in enumerate(inputs["input_ids"]):
        assert list(split.store[number]) == tokens
        assert inputs["token_type_ids"][number].index(1) == split.second[number]


def test_exported_model_can_initialize_another_training(tmp_path: Path, chain: Mapping[str, Path]) -> None:
    source = str(chain["export"] / "model")
    recipe = tiny(tokenizer__source=source, model__init=source, finetune__max_steps=1, finetune__optimizer__lr=1e-12)
    prepared = {"prepared": made_prepared(tmp_path, recipe)}
    out = run_stage(FINETUNE, prepared, FinetuneParams.of(recipe, 0), tmp_path / "finetune")
    stock = load_file(chain["export"] / "model" / "model.safetensors")
    ours = load_file(out / "model.safetensors")
    torch.testing.assert_close(ours["encoder.tokens.weight"], stock["model.embeddings.tok_embeddings.weight"])


def test_published_weights_need_their_own_tokenizer() -> None:
    with pytest.raises(InvalidRecipe, match=r"Set tokenizer\.source to the same value"):
        tiny(model__init="hub:someone/encoder")


def test_every_stage_loads_and_has_a_unique_name() -> None:
    modules = (shared_stages, learning_curve, prune, share_tickets)
    stages = [value for module in modules for value in vars(module).values() if isinstance(value, Stage)]
    assert len({stage.name for stage in stages}) == len(set(stages))
    for stage in stages:
        assert stage.place is Place.RETRIEVER or callable(stage.load())


def changed(stage: str, key: str, value: object, seed: int | None = None) -> bool:
    def params(recipe: Recipe) -> StageParams:
        if stage == "prepare":
            return PrepareParams.of(recipe)
        return {"joint": JointParams, "finetune": FinetuneParams}[stage].of(recipe, seed)

    return params(resolve("fast", "tiny")) != params(resolve("fast", "tiny", {key: value}))


def test_stage_parameters_contain_only_what_the_stage_reads() -> None:
    assert changed("prepare", "tokenizer.vocab_size", 500) and changed("prepare", "model.max_length", 64)
    assert not changed("prepare", "joint.optimizer.lr", 1e-5) and not changed("prepare", "model.layers", 9)
    assert changed("joint", "joint.rho2", 7, 0) and not changed("joint", "finetune.epochs", 7, 0)
    assert changed("finetune", "finetune.epochs", 7, 0) and not changed("finetune", "joint.rho2", 7, 0)
    assert not changed("joint", "selection.top_k", 7, 0)


def test_validation_chooses_the_rate_and_cost_covers_all_rates(chain: Mapping[str, Path], tmp_path: Path) -> None:
    """Both rates start from the chain's joint model, so one result equals the chain's own finetuning."""
    rates, folders = (1e-6, RECIPE.finetune.optimizer.lr), {}
    for number, rate in enumerate(rates):
        inputs = {"prepared": chain["prepare"], "joint": chain["joint.s0"]}
        optimizer = RECIPE.finetune.optimizer.model_copy(update={"lr": rate})
        finetune = RECIPE.finetune.model_copy(update={"optimizer": optimizer})
        params = FinetuneParams.of(RECIPE.model_copy(update={"finetune": finetune}), 0)
        folders[f"try.{number}"] = run_stage(FINETUNE, inputs, params, tmp_path / str(number))
    tries = [json.loads((folder / HISTORY).read_text()) for folder in folders.values()]
    assert tries[1]["best"]["score"] > tries[0]["best"]["score"], "the rates must differ in their result"
    (folders["try.1"] / MANIFEST).write_text("{}")
    chosen = run_stage(CHOOSE, folders, ChooseParams(tries=tuple({"lr": rate} for rate in rates)), tmp_path / "chosen")
    history = json.loads((chosen / HISTORY).read_text())
    assert history["best"] == {"lr": rates[1], **tries[1]["best"]}
    assert [result["lr"] for result in history["tries"]] == list(rates)
    assert history["cost"]["flops"] == tries[0]["cost"]["flops"] + tries[1]["cost"]["flops"]
    assert history["joint"] == tries[1]["joint"], "the joint stage counts once"
    assert (chosen / WEIGHTS).read_bytes() == (chain["finetune.s0"] / WEIGHTS).read_bytes()
    assert not (chosen / MANIFEST).exists(), "the manifest is not copied"
    params = ChooseParams(tries=({"class_weights": "none"}, {"class_weights": "balanced"}))
    ties = run_stage(CHOOSE, {"try.0": chosen, "try.1": chosen}, params, tmp_path / "ties")
    assert json.loads((ties / HISTORY).read_text())["best"]["class_weights"] == "none"


def test_report_and_card_name_the_chosen_rate(tmp_path: Path) -> None:
    task = made_task(tmp_path / "task", (60, 20, 20))
    recipe = tiny(joint__enabled=False, finetune__epochs=1, finetune__rates=(1e-3, 1e-4))
    chain = run_chain(task, None, recipe, [3], tmp_path / "run")
    (entry,) = report_of(chain)["seeds"]
    assert entry["chosen"]["lr"] in (1e-3, 1e-4) and [result["lr"] for result in entry["tries"]] == [1e-3, 1e-4]
    card = (chain["export"] / "model" / "README.md").read_text()
    assert f"Validation chose these values for finetuning: rate {entry['chosen']['lr']:g} (seed 3)." in card
