"""`analyse` from module to plan: what comes back, and one clear line for everything that is wrong."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser import GrowthBudget, GrowthOptions, analyse
from growpipe.graph_ops.errors import CheckFailed, MissingEnvironment, NothingToSplit, UsageError
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.torch_module.grow_module import grow

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4 * 9, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = nn.functional.silu(self.norm(self.conv(x))).flatten(1)
        return self.head(torch.tanh(self.hidden(x)))


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = Net()
    x = torch.randn(96, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, [(x[i : i + 32], y[i : i + 32]) for i in range(0, 96, 32)]


def run(problem, **options) -> SplitPlan:
    model, batches = problem
    return analyse(model, cross_entropy, batches, (batches[0][0][:2],), **options)


def test_plan_lowers_the_loss_and_the_model_comes_back_as_it_was(problem):
    model, batches = problem
    model.hidden.eval()
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    plan = run(problem, growth=0.5, hold_out=False)
    assert model.training
    assert not model.hidden.training
    model.train()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for old, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.equal(old, parameter.grad)
        assert parameter.requires_grad
    assert plan.added_channels == 5
    assert plan.predicted_change < 0
    assert plan.realised_change < 0
    assert plan.surrogate is None
    assert plan.predicted_change == pytest.approx(sum(g.predicted_change for g in plan.groups))
    grown = grow(model, plan).eval()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        change = cross_entropy(grown(x), y) - cross_entropy(copy.deepcopy(model).eval()(x), y)
    assert float(change) == pytest.approx(plan.realised_change, abs=1e-6)
    report = plan.notes["analysis"]
    assert report["samples"] == 96
    assert set(report["groups"]) == {"conv.weight", "hidden.weight"}
    trials = report["line_search"]["trials"]
    assert 2 <= len(trials) <= 8
    assert min(trials, key=lambda trial: trial[1])[0] == plan.epsilon


def test_an_autoencoder_whose_inputs_are_mostly_zero_gets_a_plan():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 12))
    x = torch.zeros(64, 12)
    x[:, :3] = torch.rand(64, 3)
    batches = [(part, part) for part in x.split(16)]
    plan = analyse(model, nn.functional.mse_loss, batches, (x[:2],), growth=0.5)
    assert plan.added_channels > 0
    assert plan.predicted_change < 0


def test_same_seed_same_plan_and_plans_survive_the_disk(problem, tmp_path):
    plan = run(problem)
    assert run(problem).content_hash == plan.content_hash
    plan.save(tmp_path / "plan")
    assert SplitPlan.load(tmp_path / "plan").content_hash == plan.content_hash


class Convex(nn.Module):
    """Softplus neurons that all raise the loss: every splitting matrix is positive; and a linear layer, 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bent = nn.Linear(5, 3)
        self.straight = nn.Linear(3, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.straight(nn.functional.softplus(self.bent(x))))


@pytest.mark.parametrize(("scheme", "metric"), [("s2d", "input"), ("s2d", "euclidean"), ("m2", "input")])
def test_a_least_width_is_reached_where_nothing_is_gained(scheme, metric):
    torch.manual_seed(1)
    model = Convex().double()
    with torch.no_grad():
        for layer in (model.straight, model.head):
            layer.weight.abs_()
    x = torch.randn(64, 5, dtype=torch.float64)

    def loss(output, _):
        return output.mean()

    arguments = (model, loss, [(x, x)], (x[:2],))
    options = {"scheme": scheme, "metric": metric, "hold_out": False, "ranking": "predicted"}
    if scheme == "s2d":
        with pytest.raises(NothingToSplit, match="no candidate lowers the loss"):
            analyse(*arguments, growth=1.0, **options)
    widths = {"bent.weight": 5, "straight.weight": 4}
    plan = analyse(*arguments, growth=1.0, min_widths=widths, max_widths=widths, epsilon=1e-3, **options)
    assert plan.widths == {"bent.weight": 5, "straight.weight": 4}
    notes = plan.notes["analysis"]["selection"]
    assert "2 channels of 'straight.weight' promise nothing" in notes
    assert ("2 channels of 'bent.weight' promise nothing" in notes) == (scheme == "s2d")
    # What is filled is still predicted: a rise where only positive pairs are allowed, and the least of all.
    assert (plan.predicted_change > 0) == (scheme == "s2d")
    with torch.no_grad():
        change = float(loss(grow(model, plan)(x), x) - loss(model(x), x))
    assert change / plan.predicted_change == pytest.approx(1.0, abs=1e-3 if scheme == "s2d" else 2e-2)
    for split in plan.groups:
        for displacement in split.displacements.values():
            assert (abs(displacement.values).reshape(len(displacement.channels), -1).sum(1) > 0).all()


@pytest.mark.parametrize("scheme", ["s2d", "m3"])
def test_copies_stay_within_the_scheme(problem, scheme):
    plan = run(problem, scheme=scheme, c=2.0, growth=1.0, epsilon=0.05)
    copies = {"s2d": 2, "m3": 3}[scheme]
    for group in plan.groups:
        _, counts = torch.unique(torch.from_numpy(group.source), return_counts=True)
        assert int(counts.max()) <= copies
        bound = 1.0 if scheme == "s2d" else 2.0
        total = torch.zeros(group.width, dtype=torch.float64).index_add_(
            0, torch.from_numpy(group.source), torch.from_numpy(abs(group.coefficient))
        )
        assert float(total.max()) <= bound + 1e-9
    assert plan.epsilon == 0.05


def test_frozen_groups_limits_and_alignment(problem):
    assert set(run(problem, freeze=("conv.weight",), epsilon=0.1).widths) == {"hidden.weight"}
    plan = run(problem, growth=1.0, align=4, epsilon=0.1)
    assert plan.widths
    assert all(width % 4 == 0 for width in plan.widths.values())
    limited = run(
        problem,
        growth=1.0,
        min_widths={"conv.weight": 6},
        max_widths={"conv.weight": 6, "hidden.weight": 7},
        epsilon=0.1,
    )
    assert limited.widths["conv.weight"] == 6
    assert limited.widths.get("hidden.weight", 6) <= 7


def test_groups_that_do_not_compete_are_not_measured_anew(problem):
    fixed = {"conv.weight": 6, "hidden.weight": 7}
    plan = run(problem, growth=1.0, min_widths=fixed, max_widths=fixed)
    assert plan.widths == {"conv.weight": 6, "hidden.weight": 7}
    errors = [group["standard_error"] for group in plan.notes["analysis"]["calibration"].values()]
    assert errors == [0.0, 0.0]
    plan = run(problem, growth=1.0, min_widths=fixed, max_widths={**fixed, "hidden.weight": 8})
    assert all(group["standard_error"] > 0 for group in plan.notes["analysis"]["calibration"].values())


def test_stopping_rules_can_be_turned_off(problem):
    """Without them all samples are used, and every end is within the tolerance."""
    facts = run(
        problem, stability=1.0, noise_share=0.0, tolerance=1e-3, solver="lanczos", hold_out=False
    ).notes["analysis"]
    assert facts["stages"][-1]["samples"] == 96
    assert facts["stages"][-1]["error"] <= 1e-3
    assert facts["stopped"] == "the analysis set is used up"
    rough = run(problem, noise_share=10.0, tolerance=1e-3, solver="lanczos").notes["analysis"]
    assert rough["stages"][0]["products"] == 2  # of two vectors each
    assert rough["stages"][0]["products_per_group"] == 4
    assert rough["products"] < facts["products"]


def test_relu_names_its_surrogate():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    data = [(torch.randn(64, 5), torch.randint(0, 2, (64,)))]
    plan = analyse(model, cross_entropy, data, (torch.randn(2, 5),), surrogate_beta=4.0)
    assert plan.surrogate == "softplus(beta=4)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "m7"}, "wrong at 'scheme': .*'m4', got 'm7'"),
        ({"metric": "fisher"}, "wrong at 'metric': .*'input', got 'fisher'"),
        ({"solver": "power"}, "wrong at 'solver': .*'lanczos', got 'power'"),
        ({"epsilon": -1.0}, "wrong at 'epsilon': .*greater than or equal to 0, got -1.0"),
        ({"stability": 0.0}, "wrong at 'stability': .*greater than 0, got 0.0"),
        ({"noise_share": -1.0}, "wrong at 'noise_share': .*greater than or equal to 0"),
        ({"ranking_samples": 0}, "wrong at 'ranking_samples': .*greater than or equal to 1"),
        ({"max_samples": 8}, "wrong at 'max_samples': .*greater than or equal to 16, got 8"),
        ({"tolerance": 0.0}, "wrong at 'tolerance': .*greater than 0"),
        ({"growth": 0.0}, "wrong at 'share': .*greater than 0"),
        ({"displace": ("gates",)}, "wrong at 'displace.0': .*'affine', got 'gates'"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"max_widths": {"nobody": 2}}, "no splittable group 'nobody'"),
        ({"shceme": "m4"}, "unknown option 'shceme'; did you mean 'scheme'?"),
        ({"growth": GrowthOptions(min_widths={"a": 3}, max_widths={"a": 2})}, "least width of 'a' is 3"),
    ],
)
def test_wrong_arguments(problem, options, message):
    with pytest.raises(UsageError, match=message):
        run(problem, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model, x, y: (model, x[:, :, :, :5], y),
            r"inputs \[\d+, 1, 8, 5\] float32, target \[\d+\] int64",
        ),
        (lambda model, x, y: (model, x, y.float()), "expected target dtype|expected scalar type"),
        (lambda model, x, y: (model.bfloat16(), x.bfloat16(), y), "'conv.weight' is bfloat16"),
        (lambda model, x, y: (model.half(), x.half(), y), "'conv.weight' is float16"),
        (lambda model, x, y: (nn.DataParallel(model), x, y), r"DataParallel wraps the network.*its \.module"),
        (lambda model, x, y: (torch.compile(model), x, y), r"OptimizedModule wraps .*its \._orig_mod"),
        (lambda model, x, y: (made_for_inference(model), x, y), r"made in torch\.inference_mode.*outside"),
        (
            lambda model, x, y: (nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), x, y),
            r"'1.weight' of a lazy module has no shape yet; call the model once",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_models_and_batches_that_do_not_do(problem, change, message):
    model, batches = problem
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    example = x[:2]
    model, x, y = change(copy.deepcopy(model), x, y)
    with pytest.raises(UsageError, match=message) as refusal:
        analyse(model, cross_entropy, [(x, y)], (example.to(x.dtype),))
    assert "\n" not in str(refusal.value)


def made_for_inference(model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        return copy.deepcopy(model)


def test_the_analysis_computes_as_always_whatever_the_caller_has_turned_on_or_off(problem):
    model, batches = problem
    expected = run(problem).content_hash
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert run(problem).content_hash == expected
            assert torch.is_inference_mode_enabled() == isinstance(mode, torch.inference_mode)
            assert torch.is_autocast_enabled("cpu") == isinstance(mode, torch.autocast)
    with torch.inference_mode():
        data = [(x.clone(), y.clone()) for x, y in batches]
    assert run((model, data)).content_hash == expected
    alone = analyse(model, cross_entropy, batches, batches[0][0][:2])  # one input needs no tuple
    assert alone.content_hash == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there(problem):
    with pytest.raises(MissingEnvironment, match="device 'cuda' was asked for"):
        run(problem, device="cuda")


@pytest.mark.parametrize("world", ["2", "two"])
def test_processes_that_torchrun_did_not_start(problem, monkeypatch, world):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(MissingEnvironment, match="not torchrun's environment"):
        run(problem)


def test_a_spent_budget_ends_growth(problem):
    with pytest.raises(NothingToSplit, match="the budget is spent"):
        run(problem, budget=GrowthBudget(parameters=10))


def test_bad_data(problem):
    model, batches = problem
    example = (batches[0][0][:2],)
    x, y = batches[0]
    with pytest.raises(UsageError, match="batches is empty"):
        analyse(model, cross_entropy, [], example)
    with pytest.raises(UsageError, match="has 4 samples, fewer than the 16"):
        analyse(model, cross_entropy, [(x[:4], y[:4])], example)
    with pytest.raises(UsageError, match="not a mean over samples"):
        analyse(model, lambda o, t: cross_entropy(o, t, reduction="sum"), batches, example)
    with pytest.raises(UsageError, match="must give \\(inputs, target\\) pairs"):
        analyse(model, cross_entropy, [x], example)
    with pytest.raises(CheckFailed, match="loss of an analysis batch is nan"):
        analyse(model, cross_entropy, [(x * float("nan"), y)], example)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        # The value is 0, its derivative 0 times infinity.
        (
            lambda o, t: cross_entropy(o, t) + (0 * o).sum().sqrt(),
            CheckFailed,
            "the gradient of the loss at the .*put of .* is not finite; check the data and the loss",
        ),
        (lambda o, t: cross_entropy(o, t, reduction="none"), UsageError, "one number.*not a tensor of shape"),
        (lambda o, t: 1.0, UsageError, "one number.*not float"),
        (lambda o, t: cross_entropy(o.detach(), t), UsageError, "the loss cannot be differentiated"),
    ],
)
def test_bad_losses(problem, loss_fn, error, message):
    model, batches = problem
    with pytest.raises(error, match=message) as caught:
        analyse(model, loss_fn, batches, (batches[0][0][:2],))
    assert "\n" not in str(caught.value)


def test_no_splittable_group():
    model = nn.Linear(4, 2)
    data = [(torch.randn(32, 4), torch.randint(0, 2, (32,)))]
    with pytest.raises(NothingToSplit, match="Linear has no splittable channel group"):
        analyse(model, cross_entropy, data, (torch.randn(2, 4),))


def denormal() -> float:
    return (torch.tensor(2e-38) * 0.5).item()


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU always computes with denormals")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("flushed", [False, True])
def test_denormals_count_as_zero_while_it_runs(problem, flushed, fails):
    model, batches = problem
    found = []

    def loss_fn(output, target):
        found.append(denormal())
        return "no number" if fails else cross_entropy(output, target)

    torch.set_flush_denormal(flushed)
    try:
        with pytest.raises(UsageError) if fails else nullcontext():
            analyse(model, loss_fn, batches, (batches[0][0][:2],), epsilon=0.1, ranking="predicted")
        assert set(found) == {0.0}
        assert (denormal() == 0) == flushed
    finally:
        torch.set_flush_denormal(False)
