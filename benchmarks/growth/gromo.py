"""The peer gromo on the growth benchmark: the same network, data and training, growth by gromo's own method.

    pip install --no-deps gromo
    python -m benchmarks.growth.gromo benchmarks/recipes/cifar10-cpu.toml --seeds 0 1 2 --out runs/growth

Every run is one JSON file of entry ``grow:gromo`` under ``--out``, as those of `growth.py` are; its table
takes them in. The options are those of `growth.py` and must be the same.

The method is TINY (Verbockhaven, Rudkiewicz, Chevallier, Charpiat, "Growing Tiny Networks", arXiv
2405.19816), as gromo 0.1 has it for chains of convolutions (``FullConv2dGrowingModule``): at a layer, the
natural-gradient update of the weights that are there, and the new neurons before it that best answer what
this update cannot express, from the singular value decomposition of ``S^(-1/2) N``. Both are scaled by one
factor (the update by its square), which is searched on the analysis samples. Layers are grown one after
another, each with statistics of its own; where the decomposition has fewer neurons than are wanted (a
classifier of ten classes has ten), the layer is done again.

What is the same: the seed network and its initialisation, the moments of growth, the widths after each, the
analysis samples, the training loop, its seeds, data order and schedule, the budget of training MACs. What
differs, because gromo is made so:

- gromo's layers are its own. Before each growth the network is rebuilt of them, afterwards it is read back;
  both compute the same function (checked at every growth).
- The classifier behind the mean over pixels is a 1 x 1 convolution before it, which is the same function:
  gromo does not grow channels between a convolution and a linear layer.
- The weights that are there move at a growth as well; and gromo carries no optimizer state, so momentum
  starts anew.
- A new channel gets a batch norm of mean 0, variance 1, scale 1 and shift 0. Training, which normalises by
  the batch, gives it another scale than the search saw.

Cost of the analysis: per layer, statistics (forward, backward and the products of the covariances, which are
counted) and a forward pass for every factor that is tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.common.command import run_command
from benchmarks.growth.growth import Bench, command_line, run_all
from growpipe.environment import require
from growpipe.graph_ops.errors import CheckFailed, UsageError
from growpipe.models.convnet import ConvNet
from growpipe.training.optimizers import make_optimizer

ENTRY = "grow:gromo"
SCALES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The factors that are tried at each layer."""

_PARITY = 1e-4  # of the output's scale: the same function in float32 by other layers


class GromoNet(nn.Module):
    """`ConvNet` built of gromo's layers, with its weights.

    Images float32 [N, channels, H, W] to logits [N, classes].
    """

    def __init__(self, network: ConvNet) -> None:
        super().__init__()
        convolutions = require("gromo.modules.conv2d_growing_module", "dev", "growth_gromo.py")
        norms = require("gromo.modules.growing_normalisation", "dev", "growth_gromo.py")
        layers: list[Any] = []
        blocks = list(network.features)
        for conv, norm in zip(blocks[0::3], blocks[1::3], strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            own = norms.GrowingBatchNorm2d(norm.num_features)
            own.load_state_dict(norm.state_dict())
            layers.append(
                convolutions.FullConv2dGrowingModule(
                    conv.in_channels, conv.out_channels, (3, 3), stride=conv.stride, padding=(1, 1),
                    use_bias=False, post_layer_function=nn.Sequential(own, nn.SiLU()),
                    previous_module=layers[-1] if layers else None, allow_growing=bool(layers),
                    name=f"conv{len(layers)}",
                )
            )  # fmt: skip
            layers[-1].layer.load_state_dict(conv.state_dict())
        head = network.classifier
        layers.append(
            convolutions.FullConv2dGrowingModule(
                head.in_features, head.out_features, (1, 1), use_bias=True,
                previous_module=layers[-1], allow_growing=True, name="classifier",
            )
        )  # fmt: skip
        with torch.no_grad():
            layers[-1].layer.weight.copy_(head.weight[:, :, None, None])
            layers[-1].layer.bias.copy_(head.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        value = image
        for layer in self.layers:
            value = layer(value)
        return value.mean(dim=(2, 3))

    def extended(self, image: torch.Tensor) -> torch.Tensor:
        """The logits with the changes that were computed last, at their present scale."""
        value, extension = image, None
        for layer in self.layers:
            value, extension = layer.extended_forward(value, extension)
        return value.mean(dim=(2, 3))

    def plain(self) -> ConvNet:
        """The network in torch's layers."""
        widths = [layer.out_channels for layer in self.layers][:-1]
        first, head = self.layers[0], self.layers[-1]
        network = ConvNet(widths, first.in_channels, head.out_channels)
        blocks = list(network.features)
        with torch.no_grad():
            for layer, conv, norm in zip(self.layers, blocks[0::3], blocks[1::3], strict=False):
                conv.load_state_dict(layer.layer.state_dict())
                norm.load_state_dict(layer.post_layer_function[0].state_dict())
            network.classifier.weight.copy_(head.layer.weight[:, :, 0, 0])
            network.classifier.bias.copy_(head.layer.bias)
        return network


def grow_by_gromo(
    network: ConvNet, batches: Sequence[tuple[Any, Any]], widths: Sequence[int]
) -> tuple[ConvNet, float]:
    """Grow to these widths by gromo, a layer at a time.

    Returns:
        The grown network in eval mode, and what its analysis cost, in MACs.

    Raises:
        CheckFailed: gromo's layers do not compute what torch's do, or it finds nothing to add.
    """
    model = GromoNet(network).eval()
    _agree(network, model, batches[0][0])
    cost = 0.0
    samples = sum(len(target) for _, target in batches)
    for layer, width in zip(list(model.layers)[1:], widths, strict=True):
        while layer.in_channels < width:
            cost += samples * _widen(model, layer, batches, width - layer.in_channels)
    grown = model.plain().eval()
    _agree(grown, model, batches[0][0])
    return grown, cost


def _widen(model: GromoNet, layer: Any, batches: Sequence[tuple[Any, Any]], wanted: int) -> float:
    """Add neurons before ``layer``, as many as are wanted or found; what it cost, in MACs per sample."""
    passing, pixels = _macs(model, batches[0][0])
    cost = 3 * passing + pixels[layer.name] * _covariances(layer) + len(SCALES) * passing
    layer.init_computation()
    for image, target in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(image), target, reduction="sum").backward()
        layer.update_computation()
    # A statistical threshold of 0: the weakest neurons, too, while the decomposition has any.
    layer.compute_optimal_updates(statistical_threshold=0.0, maximum_added_neurons=wanted)
    layer.reset_computation()
    found = int(layer.eigenvalues_extension.shape[0])
    if found == 0:
        raise CheckFailed(f"gromo finds no neuron to add before {layer.name}")
    losses = {}
    for scale in SCALES:
        _scale(layer, scale)
        losses[scale] = _loss(model, batches)
    _scale(layer, min(losses, key=lambda scale: losses[scale]))
    layer.apply_change(extension_size=found)
    layer.delete_update()
    return cost


def _scale(layer: Any, scale: float) -> None:
    layer.set_scaling_factor(scale)
    layer.previous_module.output_extension_scaling = scale


@torch.no_grad()
def _loss(model: GromoNet, batches: Sequence[tuple[Any, Any]]) -> float:
    total, samples = 0.0, 0
    for image, target in batches:
        total += float(nn.functional.cross_entropy(model.extended(image), target, reduction="sum"))
        samples += len(target)
    return total / samples


@torch.no_grad()
def _agree(network: ConvNet, model: GromoNet, image: torch.Tensor) -> None:
    training = network.training
    expected, found = network.eval()(image), model.eval()(image)
    network.train(training)
    difference = float((expected - found).abs().max() / expected.abs().max())
    if not difference <= _PARITY:
        raise CheckFailed(
            f"gromo's layers differ from torch's by {difference:.1e} of the output's scale; "
            "this is not the version that was tried (0.1)"
        )


@torch.no_grad()
def _macs(model: GromoNet, image: torch.Tensor) -> tuple[float, dict[str, int]]:
    """MACs of a forward pass of one image, and the pixels that each layer makes of it."""
    total, pixels, value = 0.0, {}, image[:1]
    for layer in model.layers:
        value = layer(value)
        pixels[layer.name] = int(value.shape[2] * value.shape[3])
        total += pixels[layer.name] * layer.layer.weight.numel()
    return total, pixels


def _covariances(layer: Any) -> float:
    """MACs per pixel of the second moments that gromo collects for ``layer``.

    They are those of its patches, of the patches of the layer before it, and of the two with each other and
    with the gradient.
    """
    here = layer.layer.weight[0].numel()
    before = layer.previous_module.layer.weight[0].numel()
    out, taps = layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1]
    return float(here * (here + out) + taps * before * (before + here + out))


class GromoBench(Bench):
    """`growth.Bench` that grows by gromo."""

    def widened(
        self, task: Any, model: Any, optimizer: Any, spending: Any, method: str, number: int, target: Any
    ) -> tuple[Any, Any]:
        if not isinstance(model, ConvNet):
            raise UsageError(f"gromo is tried on ConvNet alone, not on {type(model).__name__}")
        batches = task.analysis_batches(self.protocol.samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about activations it does not know
            grown, cost = grow_by_gromo(model.cpu(), batches, _in_order(model, target))
        spending.spent += cost
        grown = grown.to(self.device)
        return grown, make_optimizer(grown, self.recipe.train)


def _in_order(model: ConvNet, widths: Mapping[str, int]) -> list[int]:
    """Widths by channel group as widths by layer; groups of a chain come in its order."""
    found = list(widths.values())
    convolutions = [module for module in model.features if isinstance(module, nn.Conv2d)]
    if len(found) != len(convolutions):
        raise UsageError(f"{len(found)} channel groups do not fit {len(convolutions)} convolutions")
    return found


def main() -> None:
    run_all(GromoBench, command_line(__doc__).parse_args(), [ENTRY])


if __name__ == "__main__":
    run_command(main)
