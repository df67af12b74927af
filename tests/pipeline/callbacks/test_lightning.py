"""Growth in a Lightning trainer: accumulation, averages, plateaus, checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from growpipe.callbacks import Plateau, When
from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.export import named_tensors

lightning = pytest.importorskip("lightning", reason="lightning is not installed")
from growpipe.callbacks import LightningGrowth  # noqa: E402 - it needs lightning

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # other people's
X = torch.rand(32, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A network, and a parameter beside it that the same optimizer trains."""

    def __init__(self, net: str = "net") -> None:
        super().__init__()
        torch.manual_seed(0)
        setattr(self, net, nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
        self.scale = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.scale * self.net(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def loader(shuffle: bool = True) -> Any:
    return DataLoader(TensorDataset(X, X.prod(1, keepdim=True)), batch_size=4, shuffle=shuffle)


def fit(folder: Path, callbacks: Any, module: Any = None, ckpt: Any = None, **options: Any) -> Any:
    given = {"max_epochs": 3, "accumulate_grad_batches": 2, "accelerator": "cpu", "logger": False,
             "enable_progress_bar": False, "enable_model_summary": False,
             "enable_checkpointing": False}  # fmt: skip
    trainer = lightning.Trainer(callbacks=callbacks, default_root_dir=folder, **{**given, **options})
    module = module or Module()
    torch.manual_seed(1)
    trainer.fit(module, loader(), loader(shuffle=False), ckpt_path=ckpt)
    return module, trainer


def small(when: When, *arguments: Any, **options: Any) -> LightningGrowth:
    quick = {"max_samples": 16, "ranking": "predicted", "epsilon": 0.1, "net": "net"}
    return LightningGrowth(when, *arguments, **{"loss": nn.functional.mse_loss, **quick, **options})


def test_the_network_grows_and_everything_goes_on(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import WeightAveraging

    averaging = WeightAveraging()
    told: list[Any] = []
    tracker = SimpleNamespace(scalars=lambda *point: told.append(point), close=lambda: told.append("closed"))
    growth = small(When(steps=(5,)), 3.0, 0.7, trackers=[tracker])
    module, trainer = fit(tmp_path, [growth, averaging], precision="bf16-mixed")
    (done,) = growth.history
    width = module.net[0].out_features
    assert done.step == 5
    sizes = [(step, values["growth/macs"]) for values, step in told[:-1] if "growth/macs" in values]
    assert sizes == [(0, 9), (5, 3 * width)]
    assert [step for values, step in told[:-1] if "val_loss" in values] == [4, 8, 12]
    assert told[-1] == "closed"
    assert 3 < width == module.net[2].in_features == done.widths["0.weight"]
    assert averaging._average_model.module.net[0].weight.shape == (width, 2)
    (optimizer,) = trainer.optimizers
    assert set(optimizer.param_groups[0]["params"]) == set(module.parameters()) == optimizer.state.keys()
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape
        assert int(state["step"]) == 12
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 / 8)


def test_training_goes_on_from_a_checkpoint_after_growth(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(folder: str, ckpt: Any = None) -> tuple[Any, Any]:
        growth = small(When(epochs=(1, 2)), growth=0.4)
        saved = ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1)
        module, _ = fit(
            tmp_path,
            [growth, saved],
            ckpt=ckpt,
            enable_checkpointing=True,
            reload_dataloaders_every_n_epochs=1,
        )
        return module, growth

    module, growth = run("whole")
    assert [done.step for done in growth.history] == [4, 8]
    (middle,) = (tmp_path / "whole").glob("epoch=1.ckpt")
    again, rest = run("rest", middle)
    assert [done.step for done in rest.history] == [8]
    for name, tensor in named_tensors(module).items():
        assert named_tensors(again)[name].shape == tensor.shape, name


@pytest.mark.parametrize(("metric", "steps"), [("val_loss", [4]), ("loss_epoch", [4])])
def test_the_network_grows_on_a_plateau(metric: str, steps: list[int], tmp_path: Path) -> None:
    plateau = Plateau(metric, patience=1, min_delta=100.0)
    growth = small(When(plateau=plateau, most=1), growth=0.4)
    fit(tmp_path, [growth], accumulate_grad_batches=4)
    assert [done.step for done in growth.history] == steps


def test_what_cannot_work_is_one_line(tmp_path: Path) -> None:
    def refused(message: str, growth: Any, module: Any = None) -> None:
        with pytest.raises(UsageError, match=message) as refusal:
            fit(tmp_path, [growth], module, max_epochs=1)
        assert "\n" not in str(refusal.value)

    at = When(steps=(2,))
    refused("net='nets' names no network inside Module; did you mean 'net'", small(at, net="nets"))
    refused("no metric 'val_los' was logged by the end of the epoch; did you mean 'val_loss'",
            small(When(plateau=Plateau("val_los"))))  # fmt: skip
    refused("the loss failed", small(at, loss=nn.functional.nll_loss))
