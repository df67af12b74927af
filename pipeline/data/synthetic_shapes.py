"""Point clouds of ten solids, made on the fly: a stand-in for ModelNet40 that needs no download.

Each cloud is drawn from the surface of a solid with random proportions, turned at random, disturbed by noise,
centred and scaled into the unit ball: float32 [points, 3].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from growpipe.data import Loaders
from growpipe.data.array_batches import Batches
from growpipe.graph_ops.errors import UsageError

__all__ = ["CLASSES", "Solids", "loaders", "make_clouds"]

_VALIDATION_SEED, _TEST_SEED = 20200311, 20200312
EVALUATION_BATCH = 100


def loaders(
    batch_size: int,
    seed: int,
    points: int = 128,
    train_samples: int = 2000,
    evaluation_samples: int = 1000,
    noise: float = 0.02,
) -> Loaders:
    """Fresh training clouds in every epoch; validation and test clouds that never change.

    Args:
        batch_size: of the training batches.
        seed: not used: the training clouds come from torch's generator, which the trainer seeds for every
            epoch.
        points: of a cloud.
        train_samples: clouds in an epoch.
        evaluation_samples: clouds in each of validation and test set.
        noise: standard deviation of what is added to every coordinate, in units of the ball's radius.

    Returns:
        Batches of clouds float32 [N, points, 3] and classes int64 [N], positions in `CLASSES`.

    Raises:
        UsageError: a number is not positive.
    """
    del seed
    if min(batch_size, points, train_samples, evaluation_samples) < 1 or noise < 0:
        raise UsageError("points and samples of the shapes must be positive, and the noise not negative")

    def fixed(own_seed: int) -> Batches:
        generator = torch.Generator().manual_seed(own_seed)
        labels = torch.arange(evaluation_samples) % len(CLASSES)
        return Batches(make_clouds(labels, points, noise, generator), labels, EVALUATION_BATCH)

    return Loaders(
        Solids(batch_size, points, train_samples, noise), fixed(_VALIDATION_SEED), fixed(_TEST_SEED)
    )


class Solids:
    """New clouds at every iteration, from torch's generator; as many batches as make up ``samples``."""

    def __init__(self, batch_size: int, points: int, samples: int, noise: float) -> None:
        self.batch_size, self.points, self.samples, self.noise = batch_size, points, samples, noise

    def __len__(self) -> int:
        return max(1, self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(self)):
            labels = torch.randint(len(CLASSES), (self.batch_size,))
            yield make_clouds(labels, self.points, self.noise), labels


def make_clouds(labels: Tensor, points: int, noise: float, generator: Generator | None = None) -> Tensor:
    """Clouds of the solids that ``labels`` name.

    Args:
        labels: int64 [N], positions in `CLASSES`.
        points: of each cloud.
        noise: standard deviation, in units of the ball's radius.
        generator: torch's own when None.

    Returns:
        float32 [N, points, 3]; centred, the farthest point at distance 1 before the noise.
    """
    count = len(labels)
    clouds = torch.empty(count, points, 3)
    for number, sampler in enumerate(_SAMPLERS.values()):
        chosen = labels == number
        clouds[chosen] = sampler(int(chosen.sum()), points, generator)
    clouds *= 0.6 + 0.8 * torch.rand(count, 1, 3, generator=generator)
    clouds = clouds @ _rotations(count, generator)
    clouds -= clouds.mean(1, keepdim=True)
    clouds /= torch.linalg.vector_norm(clouds, dim=2).amax(1)[:, None, None]
    return clouds + noise * torch.randn(count, points, 3, generator=generator)


def _rotations(count: int, generator: Generator | None) -> Tensor:
    """Rotations uniform over all of them, from unit quaternions; [count, 3, 3]."""
    q = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1)
    w, x, y, z = q.unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


Sampler = Callable[[int, int, Generator | None], Tensor]


def _uniform(count: int, points: int, generator: Generator | None) -> Tensor:
    return torch.rand(count, points, generator=generator)


def _circle(count: int, points: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * _uniform(count, points, generator)
    return angle.cos(), angle.sin()


def _sphere(count: int, points: int, generator: Generator | None) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, points, 3, generator=generator), dim=2)


def _cylinder(count: int, points: int, generator: Generator | None) -> Tensor:
    """Radius 1, height 2: the caps have a third of the area."""
    x, y = _circle(count, points, generator)
    height = 2 * _uniform(count, points, generator) - 1
    on_cap = _uniform(count, points, generator) < 1 / 3
    radius = torch.where(on_cap, _uniform(count, points, generator).sqrt(), 1.0)
    return torch.stack([radius * x, radius * y, torch.where(on_cap, height.sign(), height)], 2)


def _cone(count: int, points: int, generator: Generator | None) -> Tensor:
    """Radius 1, height 2: the side has √5 times the area of the base."""
    x, y = _circle(count, points, generator)
    radius = _uniform(count, points, generator).sqrt()
    on_base = _uniform(count, points, generator) < 1 / (1 + math.sqrt(5))
    height = torch.where(on_base, -1.0, 1 - 2 * radius)
    return torch.stack([radius * x, radius * y, height], 2)


def _torus(count: int, points: int, generator: Generator | None) -> Tensor:
    """Radii 1 and a random 0.25 to 0.5."""
    x, y = _circle(count, points, generator)
    u, v = _circle(count, points, generator)
    tube = 0.25 + 0.25 * torch.rand(count, 1, generator=generator)
    ring = 1 + tube * u
    return torch.stack([ring * x, ring * y, tube * v], 2)


def _capsule(count: int, points: int, generator: Generator | None) -> Tensor:
    """Radius 1/2, a straight part of length 1 between two half spheres of together the same area."""
    ball = 0.5 * _sphere(count, points, generator)
    x, y = _circle(count, points, generator)
    height = _uniform(count, points, generator) - 0.5
    side = torch.stack([0.5 * x, 0.5 * y, height], 2)
    shift = torch.zeros_like(ball)
    shift[..., 2] = 0.5 * ball[..., 2].sign()
    on_side = _uniform(count, points, generator)[..., None] < 0.5
    return torch.where(on_side, side, ball + shift)


def _polyhedron(vertices: list[tuple[float, ...]], faces: list[tuple[int, ...]]) -> Sampler:
    """Points uniform on the surface; faces are convex polygons."""
    corners = torch.tensor(
        [
            [vertices[face[0]], vertices[face[i]], vertices[face[i + 1]]]
            for face in faces
            for i in range(1, len(face) - 1)
        ],
        dtype=torch.float32,
    )
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = torch.linalg.vector_norm(torch.linalg.cross(first, second), dim=1)

    def sample(count: int, points: int, generator: Generator | None) -> Tensor:
        if count == 0:
            return torch.empty(0, points, 3)
        chosen = torch.multinomial(area, count * points, replacement=True, generator=generator)
        along = torch.rand(count * points, 2, generator=generator)
        along = torch.where(along.sum(1, keepdim=True) > 1, 1 - along, along)
        cloud = corners[chosen, 0] + along[:, :1] * first[chosen] + along[:, 1:] * second[chosen]
        return cloud.reshape(count, points, 3)

    return sample


_BOX = _polyhedron(
    [(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)],
    [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)],
)
_PYRAMID = _polyhedron(
    [(-1, -1, -1), (1, -1, -1), (1, 1, -1), (-1, 1, -1), (0, 0, 1)],
    [(0, 1, 2, 3), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)],
)
_TETRAHEDRON = _polyhedron(
    [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)], [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
)
_OCTAHEDRON = _polyhedron(
    [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)],
    [(x, y, z) for x in (0, 1) for y in (2, 3) for z in (4, 5)],
)
_PRISM = _polyhedron(
    [(math.cos(a), math.sin(a), z) for z in (-1.0, 1.0) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)],
    [(0, 1, 2), (3, 4, 5), (0, 1, 4, 3), (1, 2, 5, 4), (2, 0, 3, 5)],
)

_SAMPLERS: dict[str, Sampler] = {
    "box": _BOX,
    "capsule": _capsule,
    "cone": _cone,
    "cylinder": _cylinder,
    "ellipsoid": _sphere,
    "octahedron": _OCTAHEDRON,
    "prism": _PRISM,
    "pyramid": _PYRAMID,
    "tetrahedron": _TETRAHEDRON,
    "torus": _torus,
}
CLASSES = tuple(_SAMPLERS)
"""The ten solids; a class is a position here."""
