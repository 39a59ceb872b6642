"""Models of jobs in Python: from the gateway to predictions."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.filled_dashboard import Contents
from tests.contract.gateway import TOKEN, Gateway
from tests.contract.job_results import make_export
from tlm_client.client import TLMClient
from tlm_client.models import load_onnx, load_transformers
from tlm_core.errors import MissingDependency, NotFound


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tlm" / "models"


def client_of(folder: Path) -> Any:
    """Return a client whose only job has the model in a folder."""

    class OneModel:
        def __enter__(self) -> OneModel:
            return self

        def __exit__(self, *_: object) -> None: ...

        def job_id(self, _: str) -> str:
            return "job_1"

        def model(self, _: str) -> Any:
            return type("Answer", (), {"final": True})

        def download(self, _: str, target: Path) -> None:
            shutil.copytree(folder, target)

    return OneModel()


def test_onnx_model_loads_by_alias_from_the_environment(
    filled: tuple[Gateway, Contents], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, contents = filled
    texts = ["invoice charge", "parcel courier late"]
    with gateway.served() as url:
        monkeypatch.setenv("TLM_URL", url)
        monkeypatch.setenv("TLM_TOKEN", TOKEN)
        with TLMClient(url, TOKEN) as client:
            client.set_alias("tickets@production", contents.jobs["succeeded"])
            served = [prediction.label for prediction in client.predict("tickets@production", texts).data]
            assert load_onnx("tickets@production").predict(texts) == served
            client.delete_alias("tickets@production")
    assert "model.onnx" in {file.name for file in (cache / contents.jobs["succeeded"]).rglob("*")}


def test_encoder_loads_as_a_pipeline_that_truncates_texts(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    make_export(tmp_path / "out")
    folder = tmp_path / "out" / "model"
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    shape |= {"max_position_embeddings": 8}
    config = BertConfig(vocab_size=8, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", model_max_length=8
    ).save_pretrained(folder)
    for answer in load_transformers("job_1", client_of(tmp_path / "out"))(["good", "good " * 9]):
        assert answer["label"] in ("good", "bad")


def test_model_without_an_encoder_names_the_other_function(tmp_path: Path) -> None:
    make_export(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "model")
    with pytest.raises(NotFound, match="load_onnx"):
        load_transformers("job_1", client_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("library", "load", "command"),
    [("onnxruntime", load_onnx, "pip install onnxruntime tokenizers"),
     ("transformers", load_transformers, "pip install transformers torch")],
)  # fmt: skip
def test_missing_library_names_the_command_that_installs_it(
    library: str, load: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_export(tmp_path / "out")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=command):
        load("job_1", client_of(tmp_path / "out"))
