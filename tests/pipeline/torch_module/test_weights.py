"""Weights of others: taken whole, or refused in one line that names what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import save_grown
from growpipe.torch_module.weights import load_weights
from growpipe.torch_module.widen import with_widths


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.SiLU(), nn.Linear(3, 2)).eval()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["safetensors", "pt", "checkpoint", "parallel", "grown"])
def test_every_form_gives_the_trained_network(form: str, tmp_path: Path) -> None:
    trained = net(1)
    trained[1].running_mean.fill_(0.3)
    state = trained.state_dict()
    path = tmp_path / ("w.safetensors" if form in ("safetensors", "grown") else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "grown":
        save_grown(trained, path)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif form == "parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    assert torch.equal(load_weights(net(2), path)(X), trained(X))


def test_a_grown_network_keeps_its_widths(tmp_path: Path) -> None:
    export = export_growth_form(net(1), (X,))
    (group,) = (group.name for group in export.groups().groups if group.splittable)
    wide = with_widths(net(1), export, export.groups(), {group: 7}).eval()
    save_grown(wide, tmp_path / "w.safetensors")
    loaded = load_weights(net(2), tmp_path / "w.safetensors")
    assert loaded[0].out_features == 7
    assert torch.equal(loaded(X), wide(X))


def test_a_tied_tensor_may_be_saved_once(tmp_path: Path) -> None:
    trained = Tied()
    save_file({"first.weight": trained.first.weight.detach()}, tmp_path / "w.safetensors")
    loaded = load_weights(Tied(), tmp_path / "w.safetensors")
    assert torch.equal(loaded.second.weight, trained.first.weight)


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "3.bias"), "do not fit Sequential: they lack '3.bias'$"),
        (
            lambda s: without(s, *list(s)[:5]),
            r"they lack '0\.weight', '0\.bias', '1\.weight' and 2 more$",
        ),
        (lambda s: {**s, "head.bias": torch.ones(1)}, "hold 'head.bias', which the network does not have$"),
        (lambda s: {**s, "3.bias": torch.ones(7)}, r"'3\.bias' has shape \[7\], not \[2\]$"),
        (lambda s: {}, "they lack '0.weight'"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(change: Any, message: str, tmp_path: Path) -> None:
    model = net(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pt"):
        changed = change(net(1).state_dict())
        torch.save(changed, path) if path.suffix == ".pt" else save_file(changed, path)
        with pytest.raises(UsageError, match=message) as refusal:
            load_weights(model, path)
        assert "\n" not in str(refusal.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this code must not run",))


@pytest.mark.parametrize("content", [b"no weights", b"", Evil(), {"epoch": 3}, [torch.ones(1)]])
def test_files_that_are_no_weights_are_refused(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UsageError, match=r"the weights .*w\.pt cannot be read") as refusal:
        load_weights(net(1), path)
    assert "\n" not in str(refusal.value)
    assert "must not run" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("absent.pt", "absent.safetensors"):
        with pytest.raises(UsageError, match=f"{name} cannot be read: No such file"):
            load_weights(net(1), tmp_path / name)
