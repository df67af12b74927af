"""The networks that the analyser's price is measured on, with data that they can learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from benchmarks.analyser.problem import mobilenet

__all__ = ["NETWORKS", "Network", "Task", "images", "tokens"]


@dataclass(frozen=True, eq=False)
class Task:
    """Samples that hold something to learn, and the loss.

    Attributes:
        inputs: [samples, …].
        targets: int64 [samples], or [samples, positions].
        loss: the mean loss.
        batch: the samples of a training step.
        rate: the learning rate.
        clip: the largest norm of a step's gradient; None for no bound.
    """

    inputs: Tensor
    targets: Tensor
    loss: Callable[[Any, Tensor], Tensor]
    batch: int
    rate: float = 0.05
    clip: float | None = None

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """All samples in batches of a training step."""
        return list(zip(self.inputs.split(self.batch), self.targets.split(self.batch), strict=True))


@dataclass(frozen=True, eq=False)
class Network:
    """A network of the benchmark.

    Attributes:
        name: how it is called.
        build: makes it.
        task: makes its samples, so many.
        wanted: the largest share of an epoch that its analysis should take; None if no bar was set.
    """

    name: str
    build: Callable[[], nn.Module]
    task: Callable[[int], Task]
    wanted: float | None


def images(samples: int, size: int = 32, classes: int = 10, batch: int = 128) -> Task:
    """Noisy pictures of ``classes`` kinds, [samples, 3, size, size]."""
    prototypes = torch.randn(classes, 3, 8, 8)
    targets = torch.randint(0, classes, (samples,))
    small = prototypes[targets] + 0.7 * torch.randn(samples, 3, 8, 8)
    return Task(interpolate(small, size=(size, size), mode="bilinear"), targets, cross_entropy, batch)


def tokens(samples: int, length: int, vocabulary: int, batch: int) -> Task:
    """Walks of one of two kinds over a vocabulary, [samples, length]; the target is the kind."""
    targets = torch.randint(0, 2, (samples,))
    steps = torch.randint(1, 4, (samples, length)) * (1 + 2 * targets[:, None])
    return Task(steps.cumsum(1) % vocabulary, targets, cross_entropy, batch, rate=0.01)


def next_tokens(samples: int, length: int, vocabulary: int, batch: int) -> Task:
    """The same walks; the target of every position is the token behind it."""
    walks = tokens(samples, length + 1, vocabulary, batch).inputs

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    return Task(walks[:, :-1], walks[:, 1:], loss, batch, rate=0.01)


def _convolution(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    return [nn.Conv2d(i, o, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(o)]


class Residual(nn.Module):
    """``x`` or a shortcut of it plus a body, and an activation behind the sum if there is one."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, behind: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.behind = body, shortcut, behind

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H', W']."""
        out: Tensor = self.behind(self.body(x) + self.shortcut(x))
        return out


def resnet(depths: tuple[int, ...], bottleneck: bool, classes: int = 10) -> nn.Sequential:
    """ResNet of He et al. (2015) as for ImageNet: 7 x 7 stem, pooling, four stages."""
    layers: list[nn.Module] = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    last, expansion = 64, 4 if bottleneck else 1
    for stage, depth in enumerate(depths):
        inner = 64 * 2**stage
        out = inner * expansion
        for number in range(depth):
            stride = 2 if stage and not number else 1
            if bottleneck:
                body = [
                    *_convolution(last, inner, 1), nn.ReLU(), *_convolution(inner, inner, 3, stride),
                    nn.ReLU(),
                    *_convolution(inner, out, 1),
                ]  # fmt: skip
            else:
                body = [*_convolution(last, inner, 3, stride), nn.ReLU(), *_convolution(inner, out, 3)]
            same = stride == 1 and last == out
            shortcut = nn.Identity() if same else nn.Sequential(*_convolution(last, out, 1, stride))
            layers.append(Residual(nn.Sequential(*body), shortcut, nn.ReLU()))
            last = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))


def _rounded(channels: float) -> int:
    return max(8, int(channels + 4) // 8 * 8)


def mobilenet_v2(width: float, classes: int = 10) -> nn.Sequential:
    """MobileNetV2 of Sandler et al. (2018): inverted residuals."""
    last = _rounded(32 * width)
    layers: list[nn.Module] = [*_convolution(3, last, 3, 2), nn.ReLU6()]
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
              (6, 320, 1, 1)]  # fmt: skip
    for factor, channels, depth, first in stages:
        out = _rounded(channels * width)
        for number in range(depth):
            stride, hidden = (first if number == 0 else 1), last * factor
            body = [] if factor == 1 else [*_convolution(last, hidden, 1), nn.ReLU6()]
            body += [
                *_convolution(hidden, hidden, 3, stride, hidden),
                nn.ReLU6(),
                *_convolution(hidden, out, 1),
            ]
            inner = nn.Sequential(*body)
            same = stride == 1 and last == out
            layers.append(Residual(inner, nn.Identity(), nn.Identity()) if same else inner)
            last = out
    head = max(1280, _rounded(1280 * width))
    layers += [*_convolution(last, head, 1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, classes))


class _SqueezeExcite(nn.Module):
    """Channels times a gate of their means."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.SiLU(), nn.Conv2d(inner, channels, 1),
            nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same."""
        out: Tensor = x * self.gate(x)
        return out


def efficientnet_b0(classes: int = 10) -> nn.Sequential:
    """EfficientNet-B0 of Tan and Le (2019), without stochastic depth."""
    layers: list[nn.Module] = [*_convolution(3, 32, 3, 2), nn.SiLU()]
    last = 32
    stages = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
              (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)]  # fmt: skip
    for factor, kernel, first, out, depth in stages:
        for number in range(depth):
            stride, hidden = (first if number == 0 else 1), last * factor
            body = [] if factor == 1 else [*_convolution(last, hidden, 1), nn.SiLU()]
            body += [*_convolution(hidden, hidden, kernel, stride, hidden), nn.SiLU()]
            body += [_SqueezeExcite(hidden, max(1, last // 4)), *_convolution(hidden, out, 1)]
            inner = nn.Sequential(*body)
            same = stride == 1 and last == out
            layers.append(Residual(inner, nn.Identity(), nn.Identity()) if same else inner)
            last = out
    layers += [*_convolution(last, 1280, 1), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes))


class _Deepened(nn.Module):
    """A network of one input and one output whose logits are all that is returned."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Inputs to logits."""
        out: Tensor = self.inner(x).logits
        return out


def vit(layers: int, width: int, heads: int, size: int, patch: int, classes: int = 10) -> nn.Module:
    """A vision transformer of the transformers library."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
        image_size=size, patch_size=patch, num_labels=classes, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return _Deepened(ViTForImageClassification(config))


def bert_mini(vocabulary: int) -> nn.Module:
    """BERT-mini (Turc et al., 2019): 4 layers of 256."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocabulary, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=1024, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
    )  # fmt: skip
    return _Deepened(BertForSequenceClassification(config))


def gpt2(vocabulary: int) -> nn.Module:
    """The 124 M-parameter GPT-2: 12 layers of 768."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _Deepened(GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, use_cache=False)))


def deep_mobilenet(times: int) -> nn.Sequential:
    """MobileNetV1 0.25 with every block that keeps its shape ``times`` times as often, and others in kind.

    Batch normalisation makes gradients grow exponentially with depth (Yang et al., 2019): at eight times the
    depth their norm is 10¹¹. Where norms scale by 0.1 the activations are nearly linear, and it is 2.
    """
    network = mobilenet(nn.SiLU, 0.25, depth=times)
    for module in network:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.1)
    return network


def _clipped_images(samples: int) -> Task:
    return replace(images(samples), clip=1.0)


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("mobilenet", lambda: mobilenet(nn.SiLU, 0.25), images, 0.10),
        Network("resnet18", lambda: resnet((2, 2, 2, 2), False), images, 0.15),
        Network("mobilenet_v2", lambda: mobilenet_v2(0.35), images, 0.15),
        Network("vit", lambda: vit(6, 192, 3, 32, 4), images, 0.15),
        Network("bert_mini", lambda: bert_mini(8192), lambda n: tokens(n, 128, 8192, 32), 0.15),
        *(
            Network(f"mobilenet_x{times}", lambda times=times: deep_mobilenet(times), _clipped_images, None)
            for times in (1, 2, 4, 8)
        ),
        Network("resnet50", lambda: resnet((3, 4, 6, 3), True), lambda n: images(n, 64, batch=32), None),
        Network("efficientnet_b0", efficientnet_b0, lambda n: images(n, 64, batch=32), None),
        Network("mobilenet_v2_1", lambda: mobilenet_v2(1.0), lambda n: images(n, 64, batch=32), None),
        Network("vit_b16", lambda: vit(12, 768, 12, 224, 16), lambda n: images(n, 224, batch=8), None),
        Network("gpt2", lambda: gpt2(50257), lambda n: next_tokens(n, 128, 50257, 4), None),
    )
}
