"""Training: seeded, resumable to the same weights, stopped by a plateau, honest about a diverging loss."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from growpipe.data import Loaders
from growpipe.graph_ops.errors import UsageError
from growpipe.seeding import seed_everything
from growpipe.training.checkpoint import Epoch
from growpipe.training.evaluation import Objective
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions
from growpipe.training.schedule import Schedule
from growpipe.training.train import TrainingStage, train

SETTINGS = TrainingOptions(learning_rate=0.05, epochs=6, patience=2, batch_size=8)


class Killed(BaseException):
    pass


class Fragile:
    """Batches that break off when they are iterated the ``at``-th time, as a killed process does."""

    def __init__(self, batches: Any, at: int) -> None:
        self.batches, self.left = batches, at

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return iter(self.batches)


def make_loaders() -> Loaders:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator)
    data = TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())
    return Loaders(DataLoader(data, 8, shuffle=True), DataLoader(data, 64), DataLoader(data, 64))


def make_model() -> nn.Module:
    seed_everything(0, "seed network")
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Dropout(0.1), nn.Linear(6, 2))


def run(
    model: nn.Module, loaders: Loaders, settings: TrainingOptions = SETTINGS, **options: Any
) -> list[Epoch]:
    optimizer = options.pop("optimizer", None) or make_optimizer(model, settings)
    objective = Objective(loaders, options.pop("loss_fn", nn.functional.cross_entropy))
    stage = TrainingStage(**{"name": "round-00/train", "epochs": 6, **options})
    return train(model, optimizer, objective, settings, stage)


def test_the_same_seed_gives_the_same_weights_whatever_ran_before() -> None:
    first, second = make_model(), make_model()
    run(first, make_loaders())
    torch.rand(17)
    run(second, make_loaders())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("at", [2, 5])
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, at: int, optimizer: str) -> None:
    settings = SETTINGS.model_copy(update={"optimizer": optimizer})
    undisturbed = make_model()
    history = run(undisturbed, make_loaders(), settings)

    loaders = make_loaders()
    killed = make_model()
    with pytest.raises(Killed):
        run(
            killed,
            Loaders(Fragile(loaders.train, at), loaders.validation, loaders.test),
            settings,
            checkpoint=tmp_path / "p",
            key="k",
        )
    kept = json.loads((tmp_path / "p" / "progress.json").read_text())["history"]
    assert 0 < len(kept) < at
    resumed = make_model()
    counted = Fragile(make_loaders().train, at=100)
    again = Loaders(counted, loaders.validation, loaders.test)
    assert run(resumed, again, settings, checkpoint=tmp_path / "p", key="k") == history
    passes = 100 - counted.left
    assert passes == 6 - len(kept) + 1, (
        "the epochs of the checkpoint are not trained again (one recalibrates)"
    )
    for a, b in zip(undisturbed.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_something_else_is_not_used(tmp_path: Path) -> None:
    first, second = make_model(), make_model()
    run(first, make_loaders(), checkpoint=tmp_path / "p", key="k")
    history = run(second, make_loaders(), checkpoint=tmp_path / "p", key="other")
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def foreign(file: Path) -> None:
    file.write_text('["of another program"]')


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", [cut, flip, pipe, foreign, Path.unlink])
@pytest.mark.parametrize("name", ["progress.json", "weights.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_left_aside_with_a_note(
    tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_model(), make_model()
    run(first, make_loaders(), checkpoint=tmp_path / "p", key="k")
    damage(tmp_path / "p" / name)
    history = run(second, make_loaders(), checkpoint=tmp_path / "p", key="k")
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    if not (damage is Path.unlink and name == "progress.json"):
        note = " ".join(capsys.readouterr().err.split())
        assert name in note
        assert "is left aside, and the stage trains from its start" in note


def test_training_stops_at_the_plateau() -> None:
    model = make_model()
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0
    settings = SETTINGS.model_copy(update={"learning_rate": 0.0})
    history = run(model, make_loaders(), settings, optimizer=frozen, until="plateau")
    assert len(history) == 1 + settings.patience


def test_the_rate_falls_along_a_cosine_to_the_end() -> None:
    rates = [epoch.learning_rate for epoch in run(make_model(), make_loaders())]
    assert rates[0] == SETTINGS.learning_rate
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] < 0.1 * rates[0]


def test_a_rate_warms_up_stays_and_falls() -> None:
    schedule = Schedule(0.4, epochs=8, warm_up=3, annealed=4)
    rates = [schedule.at(epoch) for epoch in range(8)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[4:] == pytest.approx([0.4 * 0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4)])
    assert schedule.at(8) == pytest.approx(0.0)


def test_only_a_fresh_network_warms_up_and_only_the_last_stage_is_annealed() -> None:
    options = TrainingOptions(learning_rate=0.4, warm_up=2, anneal=0.5)

    def rates(**of: Any) -> list[float]:
        stage = TrainingStage("s", 4, **of)
        return [stage.schedule(options).at(epoch) for epoch in range(4)]

    assert rates(until="period") == rates(until="plateau") == [0.4] * 4
    assert rates(until="period", fresh=True) == pytest.approx([0.4 / 3, 0.8 / 3, 0.4, 0.4])
    assert rates(until="end") == pytest.approx([0.4, 0.4, 0.4, 0.2])
    short = TrainingStage("s", 1, fresh=True)  # an epoch at the whole rate is always left
    assert short.schedule(options).at(0) == 0.4


def test_a_period_is_trained_whole_at_a_constant_rate() -> None:
    model = make_model()
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    history = run(model, make_loaders(), optimizer=frozen, until="period")
    assert [epoch.learning_rate for epoch in history] == [SETTINGS.learning_rate] * 6


def linear_model() -> nn.Module:
    seed_everything(0, "seed network")
    return nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 2))


@pytest.mark.parametrize("batch", [8, 24])
def test_accumulated_batches_make_the_step_of_one_large_batch(batch: int) -> None:
    whole = make_loaders()
    data = whole.validation.dataset  # type: ignore[attr-defined]
    small = Loaders(DataLoader(data, 8), whole.validation, whole.test)
    large = Loaders(DataLoader(data, batch), whole.validation, whole.test)
    first, second = linear_model(), linear_model()
    settings = SETTINGS.model_copy(update={"optimizer": "sgd"})
    run(first, small, settings.model_copy(update={"accumulate": batch // 8}), epochs=2)
    run(second, large, settings, epochs=2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_products_leave_float32_parameters() -> None:
    model = linear_model()
    history = run(model, make_loaders(), SETTINGS.model_copy(update={"precision": "bfloat16"}))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[-1].train_loss < history[0].train_loss


def test_channels_last_trains_the_same_network() -> None:
    images = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, (images.mean((1, 2, 3)) > 0).long())
    loaders = Loaders(DataLoader(data, 8), DataLoader(data, 32), DataLoader(data, 32))
    weights = []
    for channels_last in (False, True):
        seed_everything(0, "seed network")
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2))
        run(model, loaders, SETTINGS.model_copy(update={"channels_last": channels_last, "optimizer": "sgd"}))
        weights.append(model[0].weight.detach())
    assert weights[1].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_says_where_and_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"round-00/train, epoch 1: the loss is nan; lower .*learning_rate"):
        run(make_model(), make_loaders(), loss_fn=lambda output, target: output.sum() * float("nan"))


def test_an_empty_loader_is_refused() -> None:
    loaders = make_loaders()
    with pytest.raises(UsageError, match="training loader gave no batches"):
        run(make_model(), Loaders([], loaders.validation, loaders.test))
    with pytest.raises(UsageError, match="gave no batches"):
        run(make_model(), Loaders(loaders.train, [], loaders.test))


def test_vectors_are_not_decayed() -> None:
    groups = make_optimizer(make_model(), SETTINGS).param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (SETTINGS.weight_decay, 0.0)


class Absent:
    def __iter__(self) -> Iterator[Any]:
        yield torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
        raise KeyError("sample 8")


class Unfinished(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("the head")


INPUTS, TARGET = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)


@pytest.mark.parametrize(
    ("batches", "model", "message"),
    [
        (Absent(), None, r"the data loader failed \(test_train\.py, line \d+\): KeyError: 'sample 8'"),
        (7, None, "the data loader failed: TypeError: 'int' object is not iterable"),
        ([{"image": INPUTS}], None, r"must give \(inputs, target\) pairs, not dict$"),
        ([(INPUTS, TARGET, TARGET)], None, "pairs, not tuple of length 3"),
        ([(INPUTS[:, :3], TARGET)], None, "the network failed: RuntimeError: mat1 and mat2 shapes"),
        (
            [(INPUTS[:1], TARGET[:1])],
            None,
            "a batch of one sample; set drop_last = True in the training load",
        ),
        ([(INPUTS, TARGET)], Unfinished(), r"the network failed \(test_train\.py, line \d+\): NotImpl"),
    ],
)
def test_what_the_users_own_code_raises_is_one_line(batches: Any, model: Any, message: str) -> None:
    good = make_loaders()
    optimizer = make_optimizer(make_model(), SETTINGS)
    with pytest.raises(UsageError, match=message) as refusal:
        run(model or make_model(), Loaders(batches, good.validation, good.test), optimizer=optimizer)
    assert "\n" not in str(refusal.value)
