"""Triangle meshes: the OFF format, and points drawn uniformly from a surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.errors import UsageError

__all__ = ["Mesh", "parse_off", "sample_surface"]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices float64 [V, 3] and triangles int64 [T, 3], positions in the vertices."""

    vertices: npt.NDArray[np.float64]
    triangles: npt.NDArray[np.int64]


def parse_off(text: str, where: str) -> Mesh:
    """An OFF file; faces with more than three corners are cut into triangles around their first one.

    The counts may follow the word OFF on its own line, as in many files of ModelNet. Comments begin with #;
    colours after a face are passed over.

    Raises:
        UsageError: it is no OFF file, ends too early, or names a vertex it has not.
    """
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines or not lines[0].startswith("OFF"):
        raise UsageError(f"{where} is no OFF file: it does not begin with OFF")
    lines[0] = lines[0].removeprefix("OFF").strip()
    if not lines[0]:
        del lines[0]
    try:
        vertex_count, face_count = (int(word) for word in lines[0].split()[:2])
        vertices = np.array([line.split()[:3] for line in lines[1 : 1 + vertex_count]], dtype=np.float64)
        faces = [
            [int(word) for word in line.split()]
            for line in lines[1 + vertex_count : 1 + vertex_count + face_count]
        ]
        triangles = np.array(
            [(face[1], face[corner], face[corner + 1]) for face in faces for corner in range(2, face[0])],
            dtype=np.int64,
        ).reshape(-1, 3)
    except (ValueError, IndexError):
        raise UsageError(f"{where} is no readable OFF file: numbers are missing or no numbers") from None
    if vertices.shape != (vertex_count, 3) or len(faces) != face_count or not len(triangles):
        raise UsageError(
            f"{where} ends before its {vertex_count} vertices and {face_count} faces; get it again"
        )
    if triangles.min() < 0 or triangles.max() >= vertex_count or not np.isfinite(vertices).all():
        raise UsageError(
            f"{where} has a face with a vertex that is not there, or a vertex that is not finite"
        )
    return Mesh(vertices, triangles)


def sample_surface(mesh: Mesh, points: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Points uniform by area, centred and scaled into the unit ball; float32 [points, 3].

    Raises:
        UsageError: the surface has no area.
    """
    corners = mesh.vertices[mesh.triangles]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(first, second), axis=1)
    if not area.sum() > 0:
        raise UsageError("a mesh has no surface to draw points from")
    chosen = generator.choice(len(area), points, p=area / area.sum())
    along = generator.random((points, 2))
    # The other half of the parallelogram is folded back onto the triangle.
    along = np.where(along.sum(1, keepdims=True) > 1, 1 - along, along)
    cloud = corners[chosen, 0] + along[:, :1] * first[chosen] + along[:, 1:] * second[chosen]
    cloud = cloud - cloud.mean(0)
    return (cloud / max(np.linalg.norm(cloud, axis=1).max(), 1e-12)).astype(np.float32)
