"""PointNet (arXiv 1612.00593) and DGCNN (arXiv 1801.07829) with any widths.

Layers that all points share are convolutions of kernel 1 on [N, channels, points].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from growpipe.graph_ops.errors import UsageError
from growpipe.models.layers import activation

__all__ = ["DGCNN", "PointNet", "build_dgcnn", "build_pointnet"]


class Dense(nn.Sequential):
    """Linear layer, batch norm, activation; [N, inputs] to [N, outputs]."""

    def __init__(self, inputs: int, outputs: int, phi: str) -> None:
        super().__init__(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), activation(phi))


class Shared(nn.Sequential):
    """The same for every point: [N, inputs, points] to [N, outputs, points]."""

    def __init__(self, inputs: int, outputs: int, phi: str) -> None:
        super().__init__(nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs), activation(phi))


def stack(layer: Callable[[int, int, str], nn.Module], widths: Sequence[int], phi: str) -> nn.Sequential:
    """Layers from each width to the next."""
    return nn.Sequential(*(layer(a, b, phi) for a, b in itertools.pairwise(widths)))


class Coordinates(nn.Linear):
    """Features to a matrix for each cloud, row by row: the three coordinates to as many as there are columns.

    At first, whatever the features, column j is the coordinate j mod 3: the identity for three columns.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        columns = torch.arange(self.out_features // 3) % 3
        with torch.no_grad():
            self.bias.copy_(torch.eye(3)[:, columns].reshape(-1))


class TransformNet(nn.Module):
    """PointNet's T-net: clouds [N, 3, points] to a matrix for each, [N, 3, 3], at first the identity.

    The matrix may grow to the right: the cloud then has more coordinates than three.

    Args:
        widths: of the shared layers.
        hidden: of the layers after the maximum.
        phi: the activation.
    """

    def __init__(self, widths: Sequence[int], hidden: Sequence[int], phi: str) -> None:
        super().__init__()
        self.shared = stack(Shared, (3, *widths), phi)
        self.hidden = stack(Dense, (widths[-1], *hidden), phi)
        self.matrix = Coordinates(hidden[-1], 9)

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        matrix = self.matrix(self.hidden(self.shared(cloud).amax(2)))
        transform: torch.Tensor = matrix.reshape(-1, 3, self.matrix.out_features // 3)
        return transform


class PointNet(nn.Module):
    """Clouds float32 [N, points, 3] to logits [N, classes].

    Args:
        widths: of the shared layers, the last one before the maximum over the points.
        hidden: of the layers after it.
        classes: the number of classes.
        transform: begin with a T-net; its widths are those of the network.
        dropout: before the classifier.
        phi: the activation.
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden: Sequence[int],
        classes: int,
        transform: bool,
        dropout: float,
        phi: str,
    ) -> None:
        super().__init__()
        self.transform = TransformNet(widths[-3:], hidden, phi) if transform else None
        self.shared = stack(Shared, (3, *widths), phi)
        self.hidden = stack(Dense, (widths[-1], *hidden), phi)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden[-1], classes)

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        points = cloud.transpose(1, 2)
        if self.transform is not None:
            points = (cloud @ self.transform(points)).transpose(1, 2)
        logits: torch.Tensor = self.classifier(self.dropout(self.hidden(self.shared(points).amax(2))))
        return logits


def nearest_in_space(points: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest points of every point, itself among them, from differences of coordinates.

    Every runtime rounds these alike, so that all of them find the same neighbours.

    Args:
        points: [N, 3, points].

    Returns:
        int64 [N, points, k].
    """
    x, y, z = (row.unsqueeze(2) - row.unsqueeze(1) for row in points.detach().unbind(1))
    return (x * x + y * y + z * z).topk(k, dim=2, largest=False).indices


def nearest(features: torch.Tensor, k: int) -> torch.Tensor:
    """As `nearest_in_space`, for any number of channels, by a matrix product."""
    features = features.detach()
    squares = features.square().sum(1)
    # |x_i − x_j|² without |x_i|², which is the same for all j.
    distance = squares[:, None, :] - 2.0 * (features.transpose(1, 2) @ features)
    return distance.topk(k, dim=2, largest=False).indices


class EdgeConv(nn.Module):
    """max over the neighbours j of φ(BN(U x_i + V x_j)); [N, inputs, points] to [N, outputs, points].

    The same functions as the published W [x_i, x_j − x_i], with k times fewer multiplications: U and V are
    applied before the neighbours are gathered.
    """

    def __init__(self, inputs: int, outputs: int, phi: str) -> None:
        super().__init__()
        self.centre = nn.Conv1d(inputs, outputs, 1, bias=False)
        self.neighbour = nn.Conv1d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.phi = activation(phi)

    def forward(self, features: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        near = self.neighbour(features)
        rows = neighbours.flatten(1).unsqueeze(1).expand(-1, near.shape[1], -1)
        edges = near.gather(2, rows).unflatten(2, neighbours.shape[1:]) + self.centre(features).unsqueeze(3)
        mapped: torch.Tensor = self.phi(self.norm(edges)).amax(3)
        return mapped


class DGCNN(nn.Module):
    """Clouds float32 [N, points, 3] to logits [N, classes].

    The neighbours of a point are sought

    - ``graph = "space"``: once, in the cloud;
    - ``graph = "features"``: at every layer in its input, as published. Distances between features are
      contracted without weights, so that splitting a channel would change them: such channels are barriers,
      and only the last edge convolution and what follows can grow;
    - ``graph = "projected"``: at every layer in a fixed random projection of its input (which keeps distances
      about as they are, by Johnson and Lindenstrauss). A projection has weights, so every channel can grow.

    Neighbours in features jump where rounding moves a distance past another one, so that two runtimes may
    differ by more than rounding; neighbours in space do not.

    Args:
        widths: of the edge convolutions.
        embedding: width of the shared layer on all their outputs together.
        hidden: of the layers after the maximum and the mean over the points.
        classes: the number of classes.
        k: neighbours, the point itself among them.
        graph: as above.
        dropout: before the classifier.
        phi: the activation.
    """

    def __init__(
        self,
        widths: Sequence[int],
        embedding: int,
        hidden: Sequence[int],
        classes: int,
        k: int,
        graph: str,
        dropout: float,
        phi: str,
    ) -> None:
        super().__init__()
        self.k, self.graph = k, graph
        inputs = (3, *widths[:-1])
        self.edges = nn.ModuleList(EdgeConv(a, b, phi) for a, b in zip(inputs, widths, strict=True))
        self.projections = nn.ModuleList()
        if graph == "projected":
            for width in widths[:-1]:
                projection = nn.Conv1d(width, PROJECTED, 1, bias=False).requires_grad_(False)
                nn.init.normal_(projection.weight, std=PROJECTED**-0.5)
                self.projections.append(projection)
        self.embedding = Shared(sum(widths), embedding, phi)
        self.hidden = stack(Dense, (2 * embedding, *hidden), phi)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden[-1], classes)

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        features, layers = cloud.transpose(1, 2), []
        neighbours = nearest_in_space(features, self.k)
        for number, edge in enumerate(self.edges):
            if number and self.graph != "space":
                seen = features if self.graph == "features" else self.projections[number - 1](features)
                neighbours = nearest(seen, self.k)
            features = edge(features, neighbours)
            layers.append(features)
        embedded = self.embedding(torch.cat(layers, dim=1))
        logits: torch.Tensor = self.classifier(
            self.dropout(self.hidden(torch.cat([embedded.amax(2), embedded.mean(2)], 1)))
        )
        return logits


PROJECTED = 8
"""Width of the random projections in which a DGCNN seeks neighbours."""

_GRAPHS = ("space", "features", "projected")


def build_pointnet(
    widths: Sequence[int] = (64, 64, 64, 128, 1024),
    hidden: Sequence[int] = (512, 256),
    classes: int = 40,
    transform: bool = False,
    dropout: float = 0.3,
    activation: str = "silu",
) -> PointNet:
    """A PointNet (the published widths by default), initialised from torch's generator."""
    if len(widths) < 3 or not hidden or min(*widths, *hidden) < 1:
        raise UsageError(f"PointNet has at least 3 shared widths and one hidden, not {widths} and {hidden}")
    return PointNet(widths, hidden, classes, transform, dropout, activation)


def build_dgcnn(
    widths: Sequence[int] = (64, 64, 128, 256),
    embedding: int = 1024,
    hidden: Sequence[int] = (512, 256),
    classes: int = 40,
    k: int = 20,
    graph: str = "space",
    dropout: float = 0.5,
    activation: str = "silu",
) -> DGCNN:
    """A DGCNN (the published widths by default), initialised from torch's generator."""
    if graph not in _GRAPHS:
        raise UsageError(f"graph is one of {', '.join(_GRAPHS)}, not {graph!r}")
    if not widths or not hidden or min(*widths, *hidden, embedding, k) < 1:
        raise UsageError(f"DGCNN wants positive widths, not {widths}, {embedding} and {hidden}")
    return DGCNN(widths, embedding, hidden, classes, k, graph, dropout, activation)
