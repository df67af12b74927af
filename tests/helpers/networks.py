"""Tiny networks of every family that growth must handle; `FAMILIES` names each with the shape of a sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}


def family(*shape: int):
    """Register a network with the shape of one sample."""

    def register(build):
        FAMILIES[build.__name__] = (build, shape)
        return build

    return register


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The network in eval mode, with batch-norm statistics that are not the trivial ones."""
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def conv_bn(inputs: int, outputs: int, kernel: int = 3, act: type[nn.Module] = nn.ReLU, **options):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        act(),
    )


def classifier(channels: int, *before: nn.Module) -> nn.Sequential:
    return nn.Sequential(*before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None):
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x):
        return self.act(self.body(x) + self.shortcut(x))


class Parallel(nn.Module):
    """Branches on one input, concatenated."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


@family(8)
def mlp():
    return nn.Sequential(
        nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Softplus(), nn.BatchNorm1d(10), nn.Linear(10, 3)
    )


@family(3, 8, 8)
def cnn_flatten():
    return nn.Sequential(
        conv_bn(3, 6, act=nn.SiLU),
        nn.MaxPool2d(2),
        conv_bn(6, 8, act=nn.GELU),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ReLU6(),
        nn.Linear(10, 4),
    )


@family(3, 8, 8)
def mobilenet_v1():
    return classifier(
        12,
        conv_bn(3, 6, stride=2),
        conv_bn(6, 6, groups=6),
        conv_bn(6, 10, 1),
        conv_bn(10, 20, groups=10),
        conv_bn(20, 12, 1, nn.Hardswish),
    )


def inverted_residual(inputs: int, hidden: int, outputs: int, stride: int = 1, act=nn.ReLU6):
    body = nn.Sequential(
        conv_bn(inputs, hidden, 1, act),
        conv_bn(hidden, hidden, 3, act, groups=hidden, stride=stride),
        conv_bn(hidden, outputs, 1, nn.Identity),
    )
    return Residual(body) if stride == 1 and inputs == outputs else body


@family(3, 8, 8)
def mobilenet_v2():
    return classifier(
        14,
        conv_bn(3, 6, act=nn.ReLU6),
        inverted_residual(6, 12, 8, 2),
        inverted_residual(8, 16, 8),
        inverted_residual(8, 16, 8),
        conv_bn(8, 14, 1, nn.ReLU6),
    )


def basic_block(inputs: int, outputs: int, stride: int = 1):
    body = nn.Sequential(conv_bn(inputs, outputs, stride=stride), conv_bn(outputs, outputs, act=nn.Identity))
    same = stride == 1 and inputs == outputs
    return Residual(
        body, None if same else conv_bn(inputs, outputs, 1, nn.Identity, stride=stride), nn.ReLU()
    )


@family(3, 8, 8)
def resnet_basic():
    return classifier(10, conv_bn(3, 6), basic_block(6, 6), basic_block(6, 10, 2), basic_block(10, 10))


def bottleneck(inputs: int, hidden: int, outputs: int, stride: int = 1, groups: int = 1):
    body = nn.Sequential(
        conv_bn(inputs, hidden, 1),
        conv_bn(hidden, hidden, stride=stride, groups=groups),
        conv_bn(hidden, outputs, 1, nn.Identity),
    )
    same = stride == 1 and inputs == outputs
    return Residual(
        body, None if same else conv_bn(inputs, outputs, 1, nn.Identity, stride=stride), nn.ReLU()
    )


@family(3, 8, 8)
def resnet_bottleneck():
    return classifier(12, conv_bn(3, 6), bottleneck(6, 4, 12, 2), bottleneck(12, 5, 12))


@family(3, 8, 8)
def resnext():
    return classifier(12, conv_bn(3, 6), bottleneck(6, 8, 12, 2, groups=4), bottleneck(12, 6, 12, groups=2))


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of the first ResNets: strided, channels padded with zeros."""

    def forward(self, x):
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


@family(3, 8, 8)
def resnet_padded():
    body = nn.Sequential(conv_bn(6, 10, stride=2), conv_bn(10, 10, act=nn.Identity))
    return classifier(10, conv_bn(3, 6), Residual(body, PaddedShortcut(), nn.ReLU()))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv_bn(inputs, 8, 1))
        self.last = nn.Conv2d(8, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.last(self.body(x))], 1)


@family(3, 8, 8)
def densenet():
    return classifier(
        15,
        conv_bn(3, 6),
        DenseLayer(6, 4),
        DenseLayer(10, 4),
        conv_bn(14, 7, 1),
        nn.AvgPool2d(2),
        DenseLayer(7, 4),
        DenseLayer(11, 4),
    )


@family(3, 8, 8)
def inception():
    return classifier(
        11,
        conv_bn(3, 6),
        Parallel(
            conv_bn(6, 4, 1),
            nn.Sequential(conv_bn(6, 3, 1), conv_bn(3, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(6, 3, 1)),
        ),
        conv_bn(12, 11),
    )


@family(3, 8, 8)
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 10)
        self.up = nn.ConvTranspose2d(10, 8, 2, stride=2)
        self.right2 = conv_bn(16, 7)
        self.right1 = conv_bn(13, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        bottom = self.bottom(functional.max_pool2d(second, 2))
        second = self.right2(torch.cat([second, self.up(bottom)], 1))
        wide = functional.interpolate(second, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.right1(torch.cat([first, wide], 1)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int, gate: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.gate = gate()

    def forward(self, x):
        return x * self.gate(self.expand(functional.silu(self.reduce(self.pool(x)))))


class FlatSqueezeExcite(nn.Module):
    """The variant with linear layers and a view."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x):
        b, c, _, _ = x.shape
        return x * self.fc(x.mean((2, 3)).view(b, c)).view(b, c, 1, 1).expand_as(x)


@family(3, 8, 8)
def efficientnet():
    body = nn.Sequential(
        conv_bn(6, 12, 1, nn.SiLU),
        conv_bn(12, 12, 5, nn.SiLU, groups=12),
        SqueezeExcite(12, 3),
        conv_bn(12, 6, 1, nn.Identity),
    )
    return classifier(10, conv_bn(3, 6, act=nn.SiLU), Residual(body), conv_bn(6, 10, 1, nn.SiLU))


@family(3, 8, 8)
def mobilenet_v3():
    body = nn.Sequential(
        conv_bn(6, 12, 1, nn.Hardswish),
        conv_bn(12, 12, 3, nn.Hardswish, groups=12),
        SqueezeExcite(12, 4, nn.Hardsigmoid),
        conv_bn(12, 6, 1, nn.Identity),
    )
    return classifier(10, conv_bn(3, 6, act=nn.Hardswish), Residual(body), conv_bn(6, 10, 1, nn.Hardswish))


@family(3, 8, 8)
def senet():
    return classifier(8, conv_bn(3, 8), Residual(nn.Sequential(conv_bn(8, 8), FlatSqueezeExcite(8, 4))))


class Shuffle(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: one half passes, the other is transformed, then the channels are shuffled."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), conv_bn(half, half, act=nn.Identity, groups=half), conv_bn(half, half, 1)
        )
        self.shuffle = Shuffle(2)

    def forward(self, x):
        left, right = x.chunk(2, 1)
        return self.shuffle(torch.cat([left, self.branch(right)], 1))


@family(3, 8, 8)
def shufflenet_v2():
    return classifier(12, conv_bn(3, 16), ShuffleUnit(16), ShuffleUnit(16), conv_bn(16, 12, 1))


@family(3, 8, 8)
def shufflenet_v1():
    """Grouped 1 x 1 convolutions, shuffled, depthwise, grouped again."""
    return classifier(
        12,
        conv_bn(3, 12),
        conv_bn(12, 24, 1, groups=2),
        Shuffle(2),
        conv_bn(24, 24, groups=24),
        conv_bn(24, 12, 1, groups=2),
    )


@family(3, 8, 8)
def shuffle_uneven():
    """As above, with three groups of eight: no block of channels stays together."""
    return classifier(
        12, conv_bn(3, 12), conv_bn(12, 24, 1, groups=3), Shuffle(3), conv_bn(24, 12, 1, groups=3)
    )


@family(3, 8, 8)
class SplitBranches(nn.Module):
    """Uneven Split, Slice and reordered Concat on the channel axis."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid, self.last = conv_bn(3, 11), conv_bn(4, 4), conv_bn(15, 6)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        a, b, c = x.split([3, 4, 4], 1)
        return self.head(self.last(torch.cat([c, self.mid(b) + c, a, x[:, 5:9]], 1)))


class ChannelsFirstNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.7))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(functional.gelu(self.wide(y)))
        return x + y.permute(0, 3, 1, 2)


@family(3, 8, 8)
def convnext():
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, 2),
        ConvNeXtBlock(4),
        ChannelsFirstNorm(4),
        nn.Conv2d(4, 6, 2, 2),
        ConvNeXtBlock(6),
        Mean(),
        nn.LayerNorm(6),
        nn.Linear(6, 4),
    )


class Attention(nn.Module):
    """Multi-head attention with one packed projection, as ViT writes it."""

    def __init__(self, width: int, heads: int, packed: bool = True):
        super().__init__()
        self.heads, self.packed = heads, packed
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        if self.packed:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (
                part.view(b, n, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(c, dim=-1)
            )
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class PackedSwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.both, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        gate, up = self.both(x).chunk(2, -1)
        return self.down(functional.silu(gate) * up)


class EncoderBlock(nn.Module):
    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = attention, mlp

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@family(3, 8, 8)
class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.blocks = nn.Sequential(
            EncoderBlock(8, Attention(8, 2), mlp),
            EncoderBlock(8, Attention(8, 2, packed=False), PackedSwiGLU(8, 12)),
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


@family(5, 8)
def swiglu_mlp():
    return nn.Sequential(EncoderBlock(8, nn.Identity(), SwiGLU(8, 10)), nn.Linear(8, 3))


@family(5, 8)
class Mixer(nn.Module):
    """Token mixing: a linear layer over the positions."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(x)).mean(1))


def point_mlp(*widths: int):
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


@family(3, 9)
class PointNet(nn.Module):
    """With an input transform, and the global feature repeated for every point."""

    def __init__(self):
        super().__init__()
        self.transform = point_mlp(3, 6, 8)
        self.matrix = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 9))
        self.local, self.wide = point_mlp(3, 6), point_mlp(6, 10)
        self.head = nn.Conv1d(16, 2, 1)

    def forward(self, x):
        matrix = self.matrix(self.transform(x).max(2)[0]).view(-1, 3, 3)
        local = self.local(torch.bmm(x.transpose(1, 2), matrix).transpose(1, 2))
        whole = self.wide(local).max(2, keepdim=True)[0].expand(-1, -1, x.shape[2])
        return self.head(torch.cat([local, whole], 1))


def neighbours(x, k: int):
    inner = -2 * torch.matmul(x.transpose(2, 1), x)
    square = (x**2).sum(1, keepdim=True)
    return (-square - inner - square.transpose(2, 1)).topk(k, dim=-1)[1]


def edge_features(x, picked):
    b, c, n = x.shape
    k = picked.shape[-1]
    flat = (picked + torch.arange(b).view(-1, 1, 1) * n).view(-1)
    near = x.transpose(2, 1).reshape(b * n, c)[flat, :].view(b, n, k, c)
    own = x.transpose(2, 1).reshape(b, n, 1, c).expand(-1, -1, k, -1)
    return torch.cat([near - own, own], 3).permute(0, 3, 1, 2)


@family(3, 9)
class DGCNN(nn.Module):
    """Edge convolutions on the neighbours in the input space."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(conv_bn(6, 8, 1, nn.LeakyReLU), conv_bn(8, 6, 1, nn.LeakyReLU))
        self.second = conv_bn(12, 10, 1, nn.LeakyReLU)
        self.wide = point_mlp(16, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        picked = neighbours(x, 4)
        first = self.first(edge_features(x, picked)).max(-1)[0]
        second = self.second(edge_features(first, picked)).max(-1)[0]
        return self.head(self.wide(torch.cat([first, second], 1)).max(2)[0])


@family(2, 16)
def conv1d():
    return nn.Sequential(
        nn.Conv1d(2, 6, 3, padding=1),
        nn.PReLU(6),
        nn.ConstantPad1d(1, 0.0),
        nn.Conv1d(6, 8, 3, stride=2),
        nn.PReLU(),
        nn.ConvTranspose1d(8, 8, 2, stride=2, groups=8),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    )


@family(2, 6, 6, 6)
def conv3d():
    return nn.Sequential(
        nn.Conv3d(2, 5, 3, padding=1),
        nn.BatchNorm3d(5),
        nn.LeakyReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(5, 6, 1),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


@family(4, 8, 8)
def group_norm():
    return classifier(12, nn.Conv2d(4, 12, 3), nn.GroupNorm(3, 12), nn.SiLU(), conv_bn(12, 12))


@family(3, 8, 8)
def instance_norm():
    return classifier(8, nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), conv_bn(8, 8))


@family(3, 8, 8)
class UsedTwice(nn.Module):
    """One convolution used twice: its inputs and outputs are one group."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.head = conv_bn(3, 6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(functional.relu(self.twice(functional.relu(self.twice(self.stem(x))))))


@family(6)
class TiedTranspose(nn.Module):
    """One matrix as encoder and, transposed, as decoder."""

    def __init__(self):
        super().__init__()
        self.first, self.hidden = nn.Linear(6, 7), nn.Linear(7, 9)
        self.last, self.head = nn.Linear(7, 8), nn.Linear(8, 2)

    def forward(self, x):
        wide = torch.tanh(self.hidden(torch.relu(self.first(x))))
        again = torch.relu(functional.linear(wide, self.hidden.weight.T))
        return self.head(torch.relu(self.last(again)))


@family(4, 6, 6)
class PixelShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.mid = nn.Conv2d(4, 24, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.tail = nn.Conv2d(20, 2, 1)

    def forward(self, x):
        x = functional.relu(self.mid(functional.pixel_shuffle(functional.relu(self.wide(x)), 2)))
        return self.tail(functional.pixel_unshuffle(x, 2))


@family(3, 8, 8)
class HighwayGates(nn.Module):
    """Channels multiplied, divided and compared with each other, and clamped."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 7), conv_bn(3, 7, act=nn.Softplus), nn.Conv2d(7, 5, 1)
        self.scale = nn.Parameter(torch.rand(7, 1, 1))
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        mixed = torch.where(a > b, a * self.scale, a / (b + 1)).clamp(-1, 1)
        return self.head(torch.maximum(self.c(mixed), self.c(torch.rsqrt(b + 1))))
