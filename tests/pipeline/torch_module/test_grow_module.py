"""The torch mirror: function kept at ε = 0, module sizes, tied weights, optimizer state, weights on disk."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from growpipe.graph_ops.axes.dims import Atom, Fixed, Product
from growpipe.graph_ops.axes.layouts import AxisLayout, TensorLayout
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import net2net_plan
from growpipe.graph_ops.plan.grow_tensor import Displacement
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan, hash_parameters
from growpipe.torch_module.export import export_growth_form, named_tensors
from growpipe.torch_module.grow_module import grow, grow_into, load_grown, plan_for_module, save_grown
from growpipe.torch_module.outputs import to_numpy


class Net(nn.Module):
    """Convolution, depthwise convolution, grouped convolution, flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.depthwise = nn.Conv2d(3, 3, 3, groups=3)
        self.pointwise = nn.Conv2d(3, 4, 1)
        self.grouped = nn.Conv2d(4, 6, 1, groups=2)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.norm(self.first(x)))
        x = torch.tanh(self.pointwise(torch.tanh(self.depthwise(x))))
        return self.head(torch.tanh(self.grouped(x)).flatten(1))


A, G, I, O = Atom("a", 3), Atom("g", 2), Atom("i", 2), Atom("o", 3)  # noqa: E741
LAYOUTS = {
    name: TensorLayout(tuple(AxisLayout(dim, role) for dim, role in axes))  # type: ignore[arg-type]
    for name, axes in {
        "first.weight": [(A, "copied"), (Fixed(2), "copied"), (Fixed(3), "copied"), (Fixed(3), "copied")],
        **{f"norm.{p}": [(A, "copied")] for p in ("weight", "bias", "running_mean", "running_var")},
        "depthwise.weight": [(A, "copied"), *[(Fixed(n), "copied") for n in (1, 3, 3)]],
        "depthwise.bias": [(A, "copied")],
        "pointwise.weight": [(Product((G, I)), "copied"), (A, "mixed"), *[(Fixed(1), "copied")] * 2],
        "pointwise.bias": [(Product((G, I)), "copied")],
        "grouped.weight": [(Product((G, O)), "copied"), (I, "mixed"), *[(Fixed(1), "copied")] * 2],
        "grouped.bias": [(Product((G, O)), "copied")],
        "head.weight": [(Fixed(5), "copied"), (Product((G, O, Fixed(4))), "mixed")],
    }.items()
}
SPLITS = {
    "a": ([0, 1, 2, 0, 2, 2], [1.5, 1.0, 0.5, -0.5, 1.0, -0.5]),
    "g": ([0, 1, 1], [1.0, 2.0, -1.0]),
    "i": ([0, 1, 0], [0.25, 1.0, 0.75]),
    "o": ([0, 1, 2, 1], [1.0, -1.0, 1.0, 2.0]),
}


def make(epsilon: float = 0.0, displaced: bool = False) -> tuple[Net, SplitPlan]:
    torch.manual_seed(0)
    model = Net().double().eval()
    for name, tensor in named_tensors(model).items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
    tensors = named_tensors(model)
    rng = np.random.default_rng(0)
    displacement = {"first.weight": Displacement(0, np.array([0, 3]), rng.standard_normal((2, 1, 2, 3, 3)))}
    plan = SplitPlan(
        groups=tuple(
            GroupSplit(
                name,
                len(set(source)),
                np.array(source),
                np.array(w),
                displacement if displaced and name == "a" else {},
            )
            for name, (source, w) in SPLITS.items()
        ),
        layouts=LAYOUTS,
        epsilon=epsilon,
        graph_hash="",
        parameters_hash=hash_parameters(LAYOUTS, lambda name: to_numpy(tensors[name])),
        scheme="random",
    )
    return model, plan


def test_the_function_is_preserved_at_epsilon_zero() -> None:
    model, plan = make(displaced=True)
    grown = grow(model, plan)
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(grown(x), model(x), rtol=1e-12, atol=1e-12)
    assert type(grown) is Net
    assert (grown.first.out_channels, grown.norm.num_features) == (6, 6)
    assert (grown.depthwise.in_channels, grown.depthwise.out_channels, grown.depthwise.groups) == (6, 6, 6)
    assert (grown.pointwise.in_channels, grown.pointwise.out_channels, grown.pointwise.groups) == (6, 9, 1)
    assert (grown.grouped.in_channels, grown.grouped.out_channels, grown.grouped.groups) == (9, 12, 3)
    assert (grown.head.in_features, grown.head.out_features) == (48, 5)
    assert model.first.out_channels == 3, "the original is left alone"


def test_a_displacement_moves_the_named_copies_only() -> None:
    model, plan = make(epsilon=0.1, displaced=True)
    values = plan.groups[0].displacements["first.weight"].values
    weight = grow(model, plan).first.weight.detach().numpy()
    original = model.first.weight.detach().numpy()
    np.testing.assert_allclose(weight[0], original[0] + 0.1 * values[0, 0], atol=1e-15)
    np.testing.assert_allclose(weight[3], original[0] + 0.1 * values[1, 0], atol=1e-15)
    np.testing.assert_array_equal(weight[[1, 2, 4, 5]], original[[1, 2, 2, 2]])


@pytest.mark.parametrize("name", ["first.weight", "depthwise.bias", "pointwise.weight", "head.weight"])
def test_carried_momentum_is_the_gradient_of_the_grown_network(name: str) -> None:
    model, plan = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)

    def backward(network: Net) -> None:
        network.zero_grad()
        network(x).square().sum().backward()

    backward(model)
    for parameter in model.parameters():
        assert parameter.grad is not None
        optimizer.state[parameter]["momentum_buffer"] = parameter.grad.clone()
    grown = grow(model, plan, optimizer=optimizer)
    backward(grown)
    parameter = grown.get_parameter(name)
    assert parameter.grad is not None
    torch.testing.assert_close(
        optimizer.state[parameter]["momentum_buffer"], parameter.grad, rtol=1e-10, atol=1e-12
    )


def test_adam_steps_keep_their_size() -> None:
    model, plan = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    tensors = named_tensors(model)
    plan = replace(plan, parameters_hash=hash_parameters(LAYOUTS, lambda name: to_numpy(tensors[name])))
    grown = grow(model, plan, optimizer=optimizer)
    before = grown.first.weight.detach().clone()
    original = model.first.weight.detach().clone()
    optimizer.zero_grad()
    grown(x).square().sum().backward()
    optimizer.step()
    step = (grown.first.weight - before).detach()
    # Copies with positive weight step as their source does, copies with negative weight the other way.
    torch.testing.assert_close(step[3], -step[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step[4], step[2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.first.weight.detach(), original)


def test_unknown_optimizer_state_is_refused_and_nothing_is_changed() -> None:
    model, plan = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.first.weight]["curvature"] = torch.zeros_like(model.first.weight)
    with pytest.raises(UsageError, match=r"'curvature' of 'first\.weight'"):
        grow(model, plan, optimizer=optimizer)
    assert optimizer.param_groups[0]["params"][0] is model.first.weight


def trained_by(make_optimizer: Any, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = make_optimizer(model.parameters())
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return optimizer


def belonging(plan: SplitPlan, model: nn.Module) -> SplitPlan:
    """The plan for the weights that the model has now."""
    tensors = named_tensors(model)
    return replace(plan, parameters_hash=hash_parameters(LAYOUTS, lambda name: to_numpy(tensors[name])))


@pytest.mark.parametrize("name", ["first.weight", "norm.weight", "pointwise.weight", "head.weight"])
def test_factored_moments_are_those_of_the_grown_moment(name: str) -> None:
    model, plan = make()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        shape = parameter.shape
        if parameter.ndim == 1:
            moment = torch.rand(shape, dtype=torch.float64)
            optimizer.state[parameter] = {
                "step": torch.tensor(1.0),
                "variance": moment,
                "exp_avg_sq": moment.clone(),
            }
            continue
        row = torch.rand(*shape[:-1], 1, dtype=torch.float64) + 0.1
        column = torch.rand(*shape[:-2], 1, shape[-1], dtype=torch.float64) + 0.1
        moment = row * column
        optimizer.state[parameter] = {
            "step": torch.tensor(1.0),
            "row_var": moment.mean(-1, keepdim=True),
            "col_var": moment.mean(-2, keepdim=True),
        }
        # The same moment, not factored: the rule that Adam's is known to obey.
        optimizer.state[parameter]["exp_avg_sq"] = moment
    grown = grow(model, plan, optimizer=optimizer)
    state = optimizer.state[grown.get_parameter(name)]
    assert state["step"] == 1
    whole = state["exp_avg_sq"]
    assert whole.shape == grown.get_parameter(name).shape
    if "variance" in state:
        assert torch.equal(state["variance"], whole)
        return
    torch.testing.assert_close(state["row_var"], whole.mean(-1, keepdim=True), rtol=1e-12, atol=0)
    torch.testing.assert_close(state["col_var"], whole.mean(-2, keepdim=True), rtol=1e-12, atol=0)
    estimate = state["row_var"] @ state["col_var"] / state["row_var"].mean(-2, keepdim=True)
    torch.testing.assert_close(estimate, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 1e-3, amsgrad=True),
        lambda p: torch.optim.NAdam(p, 1e-3),
        lambda p: torch.optim.RAdam(p, 1e-3),
        lambda p: torch.optim.Adamax(p, 1e-3),
        lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
        lambda p: torch.optim.Adagrad(p, 1e-3),
        lambda p: torch.optim.Adadelta(p, 1e-3),
        lambda p: torch.optim.Adafactor(p, 1e-3),
        lambda p: torch.optim.Rprop(p, 1e-3),
    ],
)
def test_torchs_optimizers_step_on_after_growth(make_optimizer: Any) -> None:
    model, plan = make()
    optimizer = trained_by(make_optimizer, model)
    grown = grow(model, belonging(plan, model), optimizer=optimizer)
    before = grown.head.weight.detach().clone()
    optimizer.zero_grad()
    grown(torch.randn(8, 2, 4, 4, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert torch.isfinite(grown.head.weight).all()
    assert not torch.equal(grown.head.weight, before)


@pytest.mark.parametrize(
    ("make_optimizer", "key"),
    [
        (lambda p: torch.optim.LBFGS(p, 1e-3), "al"),
        (lambda p: torch.optim.ASGD(p, 1e-3), "ax"),
    ],
)
def test_state_that_does_not_follow_growth_is_refused_before_anything_changes(
    make_optimizer: Any, key: str
) -> None:
    model, plan = make()
    optimizer = trained_by(make_optimizer, model)
    before = {id(p): dict(state) for p, state in optimizer.state.items()}
    with pytest.raises(UsageError, match=f"keeps '{key}' of '.*', which cannot be grown") as refusal:
        grow(model, belonging(plan, model), optimizer=optimizer)
    assert "\n" not in str(refusal.value)
    assert {id(p): dict(state) for p, state in optimizer.state.items()}.keys() == before.keys()
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

    model = Tied()
    layouts = {"two.weight": TensorLayout((AxisLayout(A, "copied"), AxisLayout(Fixed(3), "copied")))}
    plan = SplitPlan(
        (GroupSplit("a", 3, np.array([0, 1, 2, 0]), np.array([0.5, 1, 1, 0.5])),),
        layouts,
        0.0,
        "",
        hash_parameters(layouts, lambda _: to_numpy(model.one.weight)),
        "random",
    )
    grown = grow(model, plan)
    assert grown.one.weight is grown.two.weight
    assert grown.one.weight.shape == (4, 3)


def test_a_plan_of_other_weights_is_refused() -> None:
    model, plan = make()
    with torch.no_grad():
        model.first.weight[0, 0, 0, 0] += 1
    with pytest.raises(UsageError, match="plan was not made for this Net"):
        grow(model, plan)


def test_a_wrapped_module_is_refused() -> None:
    model, plan = make()
    with pytest.raises(UsageError, match=r"grow the network inside, its \.module"):
        grow(nn.DataParallel(model), plan)


def test_weights_survive_a_round_trip_into_a_fresh_seed(tmp_path: Path) -> None:
    model, plan = make()
    grown = grow(model, plan)
    save_grown(grown, tmp_path / "w.safetensors")
    loaded = load_grown(Net().double().eval(), tmp_path / "w.safetensors")
    x = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), grown(x), rtol=0, atol=0)
    assert loaded.grouped.groups == 3
    with pytest.raises(UsageError, match="another network"):
        load_grown(nn.Linear(2, 2), tmp_path / "w.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UsageError, match="cannot be read"):
        load_grown(Net(), tmp_path / "bad.safetensors")
    with pytest.raises(UsageError, match=r"the weights .* cannot be read: No such file"):
        load_grown(Net(), tmp_path / "absent.safetensors")


def test_one_copy_grows_by_plan_after_plan():
    """What it was grown to before leaves no trace, in sizes, tensors or function."""
    model, plain = make()
    _, displaced = make(epsilon=0.1, displaced=True)
    layouts = {n: t for n, t in plain.layouts.items() if n.startswith(("first", "norm", "depthwise"))}
    narrow = replace(
        plain,
        groups=tuple(group for group in plain.groups if group.group == "a"),
        layouts=layouts,
        parameters_hash=hash_parameters(layouts, lambda name: to_numpy(named_tensors(model)[name])),
    )
    copied = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    for plan in (displaced, plain, displaced):
        grown, expected = grow_into(copied, model, plan), grow(model, plan)
        assert grown is copied
        for name, tensor in named_tensors(expected).items():
            torch.testing.assert_close(named_tensors(grown)[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(grown(x), expected(x), rtol=0, atol=0)
        assert [repr(m) for m in grown.modules()] == [repr(m) for m in expected.modules()]
    # Tensors that a plan does not name go back to what they were.
    narrower, expected = grow_into(copied, model, narrow), grow(model, narrow)
    for name, tensor in named_tensors(expected).items():
        torch.testing.assert_close(named_tensors(narrower)[name], tensor, rtol=0, atol=0)
    for name, tensor in named_tensors(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_one_copy_grows_a_tied_parameter_by_any_of_its_names():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.other.weight = self.one.weight

    atom = Atom("a", 3)
    model = Tied()
    layouts = {"other.weight": TensorLayout((AxisLayout(atom, "copied"), AxisLayout(Fixed(3), "copied")))}
    tensors = named_tensors(model)
    plan = SplitPlan(
        groups=(GroupSplit("a", 3, np.array([0, 1, 2, 1]), np.array([1.0, 0.5, 1.0, 0.5]), {}),),
        layouts=layouts,
        epsilon=0.0,
        graph_hash="0" * 64,
        parameters_hash=hash_parameters(layouts, lambda name: to_numpy(tensors[name])),
        scheme="random",
    )
    copied = copy.deepcopy(model)
    for _ in range(2):
        grown = grow_into(copied, model, plan)
        assert grown.one.weight is grown.other.weight
        assert grown.one.weight.shape == (4, 3)


def test_a_module_under_the_other_name_of_a_tied_weight_gets_its_sizes():
    """Its bias is its own, and in the plan; its weight is in the plan under another name."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv1d(2, 2, 3, groups=2)
            self.other = nn.Conv1d(2, 2, 3, groups=2)
            self.other.weight = self.one.weight
            self.into, self.head = nn.Conv1d(3, 2, 1), nn.Conv1d(2, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.other(torch.tanh(self.one(self.into(x))))))

    torch.manual_seed(0)
    model, x = Tied().double().eval(), torch.randn(2, 3, 9, dtype=torch.float64)
    export = export_growth_form(model, (x,))
    groups = find_channel_groups(export.graph)
    (group,) = [group for group in groups.groups if group.splittable]
    plan = plan_for_module(net2net_plan(groups, export.graph, growth={group.name: 1}), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    plan = plan_for_module(plan, model)
    grown = grow(model, plan, optimizer=optimizer)
    assert grown.one.weight is grown.other.weight
    assert grown.one.groups == grown.other.groups == grown.other.in_channels == 3
    torch.testing.assert_close(grown(x), model(x))
