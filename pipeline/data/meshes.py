"""Triangle meshes: the OFF format, and points drawn uniformly from a surface."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files.reading import reading

__all__ = ["Mesh", "parse_off", "sample_surface"]

MAX_TRIANGLES = 4_000_000
MAX_LINE = 1 << 20
MAX_COORDINATE = 1e60  # areas of larger triangles overflow
_LEAST_AREA = 1e-200  # shares of a smaller one are not exact
_VERTEX, _FACE = len("0 0 0\n"), len("0\n")  # the least bytes of a line


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
        UsageError: it is not an OFF file, ends too early, or names a vertex that is not there.
    """
    with reading("the mesh", where):
        lines = _lines(text)
        first = next(lines, "")
        if not first.startswith("OFF"):
            raise UsageError("it is not an OFF file: it does not begin with OFF")
        words = (first.removeprefix("OFF").strip() or next(lines, "")).split()
        if len(words) < 2 or not all(word.isascii() and word.isdecimal() for word in words[:2]):
            raise UsageError("it gives no numbers of vertices and faces")
        vertex_count, face_count = (int(word) for word in words[:2])
        if _VERTEX * vertex_count + _FACE * face_count > len(text) + 1:
            raise UsageError(
                f"it ends before its {vertex_count} vertices and {face_count} faces; get it again"
            )
        vertices = _vertices(islice(lines, vertex_count), vertex_count)
        triangles = _triangles(islice(lines, face_count), face_count, vertex_count)
    return Mesh(vertices, triangles)


def _lines(text: str) -> Iterator[str]:
    """The lines without comments and blanks, one at a time."""
    for match in re.finditer(r"[^\r\n]+", text):
        if match.end() - match.start() > MAX_LINE:
            raise UsageError(f"it has a line of more than {MAX_LINE:,} characters")
        if line := match.group().partition("#")[0].strip():
            yield line


def _vertices(lines: Iterator[str], count: int) -> npt.NDArray[np.float64]:
    vertices = np.empty((count, 3))
    number = -1
    for number, line in enumerate(lines):
        words = line.split(maxsplit=3)[:3]
        if len(words) < 3:
            raise UsageError(f"vertex {number} has {len(words)} coordinates")
        vertices[number] = [float(word) for word in words]
    if number + 1 < count:
        raise UsageError(f"it ends after {number + 1} of {count} vertices; get it again")
    if not (np.abs(vertices) < MAX_COORDINATE).all():
        raise UsageError(f"it has a vertex that is not finite, or farther out than {MAX_COORDINATE:g}")
    return vertices


def _triangles(lines: Iterator[str], count: int, vertices: int) -> npt.NDArray[np.int64]:
    corners = array("q")
    number = -1
    for number, line in enumerate(lines):
        words = line.split()
        length = int(words[0])
        face = [int(word) for word in words[1 : 1 + length]] if length >= 0 else []
        if len(face) != length:
            raise UsageError(f"face {number} has {len(face)} of {length} corners")
        if not all(0 <= corner < vertices for corner in face):
            raise UsageError(f"face {number} has a vertex that is not there")
        for second, third in pairwise(face[1:]):
            corners.extend((face[0], second, third))
        if len(corners) > 3 * MAX_TRIANGLES:
            raise UsageError(f"it has more than {MAX_TRIANGLES:,} triangles")
    if number + 1 < count:
        raise UsageError(f"it ends after {number + 1} of {count} faces; get it again")
    if not corners:
        raise UsageError("it has no triangle")
    return np.frombuffer(corners, dtype=np.int64).reshape(-1, 3)


def sample_surface(mesh: Mesh, points: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Points uniform by area, centred and scaled into the unit ball; float32 [points, 3].

    Raises:
        UsageError: the surface has no area.
    """
    corners = mesh.vertices[mesh.triangles]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(first, second), axis=1)
    if not area.sum() > _LEAST_AREA:
        raise UsageError("a mesh has no surface to draw points from")
    chosen = generator.choice(len(area), points, p=area / area.sum())
    along = generator.random((points, 2))
    # The other half of the parallelogram is folded back onto the triangle.
    along = np.where(along.sum(1, keepdims=True) > 1, 1 - along, along)
    cloud = corners[chosen, 0] + along[:, :1] * first[chosen] + along[:, 1:] * second[chosen]
    cloud = cloud - cloud.mean(0)
    result: npt.NDArray[np.float32] = (cloud / max(np.linalg.norm(cloud, axis=1).max(), 1e-12)).astype(
        np.float32
    )
    return result
