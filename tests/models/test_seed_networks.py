"""Seed networks: what of them can grow, and that growing keeps what they compute, in torch and in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from growpipe.checks.measure.compare import run_model
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.load_save import save_model
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.models import decoder, mobilenet, pointcloud, rbf
from growpipe.torch_module.export import export_growth_form
from growpipe.torch_module.grow_module import grow, plan_for_module
from growpipe.torch_module.module_fit import fit_module
from growpipe.torch_module.widen import with_widths

pytestmark = pytest.mark.slow

V1 = (3, 2, 4, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 4)
CLOUDS = (2, 12, 3)

# The network, the shape of its input, and the operators at which the groups that cannot split end.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "mobilenet v1": (lambda: mobilenet.build_v1(V1), (2, 3, 32, 32), ["Input", "Output"]),
    "mobilenet v2": (
        lambda: mobilenet.build_v2(4, (3, 2, 3, 2, 3, 2, 3), 5, (1, 2, 1, 1, 1, 1, 1), 2, activation="relu6"),
        (2, 3, 32, 32),
        ["Input", "Output"],
    ),
    "pointnet with t-net": (
        lambda: pointcloud.build_pointnet((3, 4, 5), (4,), 10, transform=True),
        CLOUDS,
        ["Input", "Output"],
    ),
    "dgcnn": (lambda: pointcloud.build_dgcnn((3, 4), 5, (4,), 10, k=3), CLOUDS, ["Output"]),
    "dgcnn, projected": (
        lambda: pointcloud.build_dgcnn((3, 4), 5, (4,), 10, k=3, graph="projected"),
        CLOUDS,
        ["Output", "ReduceSum"],
    ),
    "rbf": (lambda: rbf.build(3), (5, 1), []),
}


@pytest.mark.parametrize("name", CASES)
def test_growing_keeps_the_function(name: str, tmp_path: Path) -> None:
    build, shape, barriers = CASES[name]
    torch.manual_seed(0)
    model, example = build(), torch.rand(shape)
    with torch.no_grad():
        for _ in range(3):  # batch norms with statistics of their own
            model(torch.rand(8, *shape[1:]))
    model.eval()
    graph = export_growth_form(model, (example,)).graph
    groups = find_channel_groups(graph)
    assert sorted(group.barrier.operator for group in groups.groups if group.barrier) == barriers
    splittable = [group for group in groups.groups if group.splittable]
    plan = random_plan(groups, graph, growth=0.5, seed=1)
    assert {split.group for split in plan.groups} == {group.name for group in splittable}

    save_model(grow_graph(graph, plan), tmp_path / "grown.onnx")
    networks = model, grow(model, plan)
    with torch.no_grad():
        before, after = (network.double()(example.double()) for network in networks)
    # The grown weights are rounded to single precision.
    assert (before - after).abs().max() <= 1e-6 * before.abs().max()
    (output,) = run_model(
        tmp_path / "grown.onnx", {str(graph.graph.inputs[0].name): example.numpy()}
    ).values()
    assert np.abs(output - before.numpy()).max() <= 1e-5 * np.abs(before.numpy()).max()


def test_the_hidden_layers_values_and_heads_of_a_decoder_grow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = decoder.build(width=8, heads=2, hidden=(3, 4), length=6, symbols=11).eval()
    text = torch.randint(0, 11, (2, 6))
    export = export_growth_form(model, (text,))
    groups = find_channel_groups(export.graph)
    layers = ("query", "expand", "value")
    growing = {f"blocks.{number}.{layer}.weight": 2 for number in (0, 1) for layer in layers}
    fit = fit_module(model, export.graph, groups, (text,))
    assert {g.name for g in groups.groups if g.splittable and g.name not in fit.rigid} == growing.keys()
    plan = random_plan(groups, export.graph, growth=growing, epsilon=0.0, seed=1)
    plan = plan_for_module(plan, model, fit.sizes, fit.pairs)
    grown = grow(model, plan)
    save_model(grow_graph(export.graph, plan), tmp_path / "grown.onnx")
    assert [block.heads for block in grown.blocks] == [4, 4]
    with torch.no_grad():
        before, after = model(text), grown(text)
    assert before.shape == (2, 11, 6)
    assert torch.allclose(before, after, atol=1e-5)
    (output,) = run_model(tmp_path / "grown.onnx", {"text": text.numpy()}).values()
    assert np.abs(output - before.numpy()).max() <= 1e-5 * np.abs(before.numpy()).max()


def test_a_decoder_sees_no_later_symbol() -> None:
    torch.manual_seed(0)
    model = decoder.build(width=8, heads=2, hidden=(3,), length=6, symbols=11).eval()
    text = torch.randint(0, 11, (1, 6))
    other = text.clone()
    other[0, 4] = (text[0, 4] + 1) % 11
    with torch.no_grad():
        same = (model(text) - model(other)).abs().amax(dim=(0, 1)) < 1e-6
    assert same.tolist() == [True] * 4 + [False] * 2
    with pytest.raises(UsageError, match="3 heads do not divide a width of 8"):
        decoder.build(width=8, heads=3)


def test_a_t_net_begins_by_repeating_the_coordinates_at_any_width() -> None:
    model = pointcloud.build_pointnet((3, 4, 5), (4,), 10, transform=True).eval()
    export = export_growth_form(model, (torch.rand(CLOUDS),))
    wider = with_widths(
        model, export, find_channel_groups(export.graph), {"transform.matrix.weight#2": 7}
    ).eval()
    cloud = torch.rand(CLOUDS)
    for network, columns in ((model, [0, 1, 2]), (wider, [0, 1, 2, 0, 1, 2, 0])):
        matrix = network.transform(cloud.transpose(1, 2))
        assert torch.equal(cloud @ matrix, cloud[:, :, columns])


def test_neighbours_among_features_are_barriers() -> None:
    model = pointcloud.build_dgcnn((3, 4), 5, (4,), 10, k=3, graph="features", activation="leaky_relu")
    groups = find_channel_groups(export_growth_form(model.eval(), (torch.rand(CLOUDS),)).graph)
    barriers = {group.name: group.barrier.operator for group in groups.groups if group.barrier}
    assert barriers["edges.0.neighbour.weight"] == "ReduceSum"
    assert "edges.1.neighbour.weight" not in barriers


def test_the_paper_s_seed_for_cifar() -> None:
    model = mobilenet.build_v1()
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    assert widths == [8, 8, 8, 8, 16, 16, 24, 24, 24, 24, 24, 24, 32, 32]
    with torch.no_grad():
        assert model.eval().blocks(torch.rand(1, 8, 32, 32)).shape == (1, 32, 2, 2)


@pytest.mark.parametrize(("build", "parameters"), [(mobilenet.build_v1, 4.2e6), (mobilenet.build_v2, 3.5e6)])
def test_published_widths_have_the_published_size(build: Callable[..., nn.Module], parameters: float) -> None:
    widths = {"widths": mobilenet.V1_WIDTHS} if build is mobilenet.build_v1 else {}
    model = build(classes=1000, image_size=224, **widths)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)
    features = model.first(torch.rand(1, 3, 224, 224))
    assert features.shape == (1, 32, 112, 112)


def test_a_multiplier_scales_all_widths() -> None:
    model = mobilenet.build_v1(multiplier=2.0)
    assert model.first[0].out_channels == 16
    assert model.classifier.in_features == 64


def test_edge_convolution_is_the_published_one() -> None:
    """max_j φ(BN(W [x_i, x_j − x_i])) with W = [U + V, V]."""
    torch.manual_seed(0)
    edge = pointcloud.EdgeConv(3, 5, "silu").double().eval()
    points = torch.randn(2, 3, 9, dtype=torch.float64)
    neighbours = pointcloud.nearest(points, 4)
    assert torch.equal(neighbours, pointcloud.nearest_in_space(points, 4))
    centre, near = edge.centre.weight[:, :, 0], edge.neighbour.weight[:, :, 0]
    published = torch.cat([centre + near, near], dim=1)
    result = edge(points, neighbours)
    for cloud in range(2):
        x = points[cloud].T
        distances = torch.cdist(x, x)
        for i in range(9):
            nearest = distances[i].topk(4, largest=False).indices
            pairs = torch.cat([x[i].expand(4, 3), x[nearest] - x[i]], dim=1)
            expected = nn.functional.silu(pairs @ published.T / (1 + edge.norm.eps) ** 0.5).amax(0)
            assert torch.allclose(result[cloud, :, i], expected, atol=1e-12)


def test_wrong_options_are_told() -> None:
    with pytest.raises(UsageError, match="14 widths"):
        mobilenet.build_v1([8, 8])
    with pytest.raises(UsageError, match="32 or 224"):
        mobilenet.build_v1(image_size=64)
    with pytest.raises(UsageError, match="seven stages"):
        mobilenet.build_v2(stages=(1, 2))
    with pytest.raises(UsageError, match="graph is one of"):
        pointcloud.build_dgcnn(graph="static")
    with pytest.raises(UsageError, match="there is no activation 'swish'"):
        mobilenet.build_v1(activation="swish")
