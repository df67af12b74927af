"""A grown model of the transformers library is saved and loaded in its own way, with the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from growpipe import analyse, grow, load_grown
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.grow_module import grow_in_place

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # other people's

TOKENS = torch.randint(0, 40, (16, 6), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(1))


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).logits


def seed(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "classifier":
        config = transformers.BertConfig(**sizes, intermediate_size=12, num_labels=3)
        return transformers.BertForSequenceClassification(config).eval()
    config = transformers.BertConfig(**sizes, intermediate_size=12)  # its decoder is tied to the embeddings
    return transformers.BertForMaskedLM(config).eval()


def plan_of(model: Any, growth: float = 0.4) -> Any:
    labels = LABELS if model.config.num_labels == 3 else TOKENS

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())

    return analyse(Logits(model), loss, [(TOKENS, labels)], (TOKENS[:2],), growth=growth)


@pytest.fixture(scope="module")
def plan() -> Any:
    """A plan of the classifier, which may serve several tests."""
    return plan_of(seed("classifier"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "tied"])
def test_a_folder_of_save_pretrained_is_loaded(kind: str, tmp_path: Path) -> None:
    model = seed(kind)
    grown = grow(Logits(model), plan_of(model)).model
    twice = grow(Logits(grown), plan_of(grown)).model
    assert not hasattr(model.config, "growpipe_module_sizes"), "the module that was given stays as it is"
    expected = twice(input_ids=TOKENS).logits
    twice.save_pretrained(tmp_path, max_shard_size="4KB" if kind == "tied" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (kind == "tied")

    with pytest.raises(RuntimeError, match="mismatch"):
        type(model).from_pretrained(tmp_path)

    built = type(model)(transformers.BertConfig.from_pretrained(tmp_path))
    loaded = load_grown(built, tmp_path).eval()
    assert torch.equal(loaded(input_ids=TOKENS).logits, expected)
    assert str(loaded) == str(twice)
    noted = json.loads((tmp_path / "config.json").read_text())["growpipe_module_sizes"]
    assert noted["bert.encoder.layer.0.intermediate.dense"].keys() == {"out_features"}
    assert "bert.encoder.layer.0.output" not in noted
    # What was loaded is saved and loaded again, and grows on.
    loaded.save_pretrained(tmp_path / "again")
    again = load_grown(seed(kind), tmp_path / "again").eval()
    assert torch.equal(again(input_ids=TOKENS).logits, expected)


def test_growth_in_place_is_noted_too(tmp_path: Path, plan: Any) -> None:
    model = seed("classifier")
    wrapped = Logits(model)
    grow_in_place(wrapped, plan)
    model.save_pretrained(tmp_path)
    loaded = load_grown(seed("classifier"), tmp_path).eval()
    assert torch.equal(loaded(input_ids=TOKENS).logits, wrapped(TOKENS))


def test_a_folder_that_has_not_grown_or_is_of_another_model_is_one_line(tmp_path: Path, plan: Any) -> None:
    model = seed("classifier")
    model.save_pretrained(tmp_path / "seed")
    with pytest.raises(UsageError, match=r"no entry 'growpipe_module_sizes'.*from_pretrained reads it"):
        load_grown(seed("classifier"), tmp_path / "seed")
    grow(Logits(model), plan).model.save_pretrained(tmp_path / "grown")
    with pytest.raises(UsageError, match="another network than BertForMaskedLM"):
        load_grown(seed("tied"), tmp_path / "grown")
    (tmp_path / "grown" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        load_grown(seed("classifier"), tmp_path / "grown")
    (tmp_path / "grown" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(UsageError, match=r"index\.json is damaged"):
        load_grown(seed("classifier"), tmp_path / "grown")
