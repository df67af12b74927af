"""Modules of transformers as they are: heads and hidden layers grow in the module and in its graph alike."""

from __future__ import annotations

import pytest

from benchmarks.graph.unmodified import LOCKSTEP, PARITY, growth_of

pytestmark = pytest.mark.slow

# The integers that have to follow, without the paths of their modules.
FOLLOWING = {
    "GPT-2": {"nf", "split_size"},
    "Phi-3": {"config.num_attention_heads", "num_key_value_heads"},
    "BERT": set(),
    "ViT": set(),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_an_unmodified_module_grows_in_lockstep(name: str) -> None:
    found = growth_of(name)
    assert found["status"] == "grown", found
    assert max(found["parity"].values()) <= PARITY
    assert found["module_against_graph"] <= LOCKSTEP
    integers = {"config." * ("config." in path) + path.rsplit(".", 1)[-1] for path in found["integers"]}
    assert FOLLOWING[name] <= integers
    # Query, key and value share the width of a head, so the values alone stay as they are.
    named = ("head_dim", "head_size", "c_attn.nf")
    assert all(any(name in reason for name in named) for reason in found["rigid"].values())
