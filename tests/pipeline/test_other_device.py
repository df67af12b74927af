"""Analysis, growth and training on a device that is not the CPU: the CPU's own numbers come out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from growpipe import analyse, environment, export_growth_form, grow
from growpipe.analyser.curvature.factors import root_of
from growpipe.analyser.curvature.moments import Moment, Patches, added
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.cli import main
from growpipe.data import Loaders
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.run.store import Run
from growpipe.training.evaluation import Objective, evaluate
from growpipe.training.optimizers import make_optimizer
from growpipe.training.options import TrainingOptions
from growpipe.training.train import TrainingStage, train
from tests.helpers.other_device import DEVICE, other_device
from tests.helpers.splitting_cases import CASES, build

pytestmark = pytest.mark.slow


def test_the_stand_in_refuses_what_cuda_refuses() -> None:
    with other_device() as device:
        x = torch.ones(3, device=device)
        assert x.device == DEVICE
        assert (x * 2).sum().item() == 6
        assert (x + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            x + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()


def assert_same_plan(expected: SplitPlan, plan: SplitPlan, smooth: bool = True) -> None:
    assert plan.epsilon == expected.epsilon
    assert plan.predicted_change == pytest.approx(expected.predicted_change, rel=1e-9)
    if smooth:  # kinks have no third order, and rounding decides on the sign of an eigenvector
        assert plan.realised_change == pytest.approx(expected.realised_change, abs=1e-9)
    assert [g.group for g in plan.groups] == [g.group for g in expected.groups]
    for a, b in zip(expected.groups, plan.groups, strict=True):
        assert (a.source == b.source).all()
        assert b.coefficient == pytest.approx(a.coefficient, abs=1e-9)


def plans(name: str, **options: Any) -> tuple[SplitPlan, SplitPlan]:
    """Of one case by the CPU, and by the other device."""
    problem = build(name)
    batches = [(problem.x[i : i + 8], problem.y[i : i + 8]) for i in range(0, 24, 8)]
    options = {"growth": 0.5, "micro_batch": 8, "hold_out": False, **options}

    def run(device: torch.device | None) -> SplitPlan:
        return analyse(problem.model, problem.loss_fn, batches, (problem.x[:2],), device=device, **options)

    expected = run(None)
    with other_device() as device:
        return expected, run(device)


@pytest.mark.parametrize("name", CASES)
def test_an_analysis_elsewhere_gives_the_same_plan(name: str) -> None:
    everything = ("weights", "filters", "biases", "affine")
    assert_same_plan(*plans(name, ranking="predicted", epsilon=0.1, displace=everything), CASES[name].smooth)


@pytest.mark.parametrize(
    "options",
    [
        {"storage": "bfloat16"},
        {"memory_limit": 0},
        {"solver": "dense", "metric": "euclidean"},
        {"micro_batch": 2, "stability": 1.0, "solver": "lanczos", "noise_share": 2.0},
    ],
)
def test_so_do_trials_and_every_way_to_find_the_spectra(options: dict[str, Any]) -> None:
    assert_same_plan(*plans("depthwise", **options))


def test_moments_of_few_patches_elsewhere() -> None:
    rows = torch.randn(12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    delta = torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def whitened(device: torch.device, limit: float) -> list[Tensor]:
        moment: Moment | None = None
        for part in rows.to(device).split(4):
            moment = added(moment, Patches(part), limit)
        assert moment is not None
        damping = torch.tensor(1e-3, dtype=torch.float64, device=device)
        root = root_of(moment, 12, damping, torch.float64)
        moved = delta.to(device)
        return [change(moved).cpu() for change in (root.raw, root.whitened, root.white)]

    for limit in (1.0, 500.0, 1e9):  # one eigenpair, three, a matrix
        expected = whitened(torch.device("cpu"), limit)
        with other_device() as device:
            for one, other in zip(whitened(device, limit), expected, strict=True):
                torch.testing.assert_close(one, other)


def stages(model: nn.Module, device: str) -> tuple[dict[str, Tensor], float]:
    """Train, grow, train on: the weights and the loss at the end."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 2, 6, 6, generator=generator, dtype=torch.float64)
    data = list(zip(images.split(16), (images[:, 0, 0, 0] > 0).long().split(16), strict=True))
    loaders = Loaders(data, data, data)
    settings = TrainingOptions(learning_rate=0.05, batch_size=16)
    model = model.to(device)
    optimizer = make_optimizer(model, settings)
    objective = Objective(loaders, cross_entropy)
    train(model, optimizer, objective, settings, TrainingStage("before", 2), device=device)
    plan = analyse(model, cross_entropy, data, (images[:2],), growth=0.5, micro_batch=16)
    model = grow(model, plan, optimizer=optimizer)
    train(model, optimizer, objective, settings, TrainingStage("after", 2), device=device)
    loss = evaluate(model, data, objective, device=device).loss
    return {name: value.cpu() for name, value in model.state_dict().items()}, loss


def test_a_network_trained_and_grown_elsewhere_has_the_same_weights() -> None:
    model = build("depthwise").model
    expected, loss = stages(copy.deepcopy(model), "cpu")
    with other_device() as device:
        weights, there = stages(copy.deepcopy(model), str(device))
    assert there == pytest.approx(loss, rel=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-6, msg=name)


class Tied(nn.Module):
    """One weight under two names, as producer and as consumer of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(4, 5)
        self.outer.weight = self.inner.weight
        self.between, self.head = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.outer(torch.tanh(self.between(torch.tanh(self.inner(x)))))))


def products(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> list[Tensor]:
    """S·v of every group, v all ones."""
    prepared = prepare(model, (x[:2],), GrowthOptions(), device)
    operator = SplittingProducts(prepared.program)
    operator.add((x.to(device),), y.to(device), cross_entropy)
    return [image.cpu() for image in operator.apply([torch.ones_like(v) for v in operator.zeros()])]


def test_tied_weights_stay_tied_elsewhere() -> None:
    """In the program; ``Module.to`` unties tensors of this stand-in, so no plan is tried here."""
    torch.manual_seed(0)
    model = Tied().double().eval()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    expected = products(model, x, y, torch.device("cpu"))
    assert any(image.abs().max() > 0 for image in expected)
    with other_device() as device:
        for image, reference in zip(products(model, x, y, device), expected, strict=True):
            torch.testing.assert_close(image, reference)


def test_an_export_that_is_given_stays_where_it_is() -> None:
    problem = build("chain")
    export = export_growth_form(problem.model, (problem.x[:2],))
    batches = [(problem.x, problem.y)]
    expected = analyse(problem.model, problem.loss_fn, batches, (problem.x[:2],))
    with other_device() as device:
        for _ in range(2):
            plan = analyse(problem.model, problem.loss_fn, batches, export, device=device)
            assert_same_plan(expected, plan, True)
    assert all(value.device.type == "cpu" for value in export.program.state_dict.values())


def test_a_whole_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage, with a control that is exported after its training."""
    recipe = tmp_path / "small.toml"
    recipe.write_text("""
name = "small"
model = "growpipe.models.digits:build"
data = "growpipe.data.digits:loaders"
inputs = ["image"]
outputs = ["logits"]
[train]
epochs = 1
final_epochs = 2
threads = 1
[growth]
rounds = 1
samples = 128
[control]
seed_control = true
""")
    monkeypatch.setattr(environment, "resolve_device", lambda device: str(DEVICE))
    out = tmp_path / "run"
    with other_device(), pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--out", str(out)])
    assert ended.value.code == 0
    assert Run.open(out).device == str(DEVICE)
    stages = {str(path.parent.relative_to(out)) for path in out.rglob("manifest.json")}
    assert {"round-00/analyse", "round-01/train", "round-01/check", "control/train"} <= stages
    assert (out / "final" / "model.onnx").exists()
