"""Mutations of the bytes of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.graph.mutation_draws import Random, choice

__all__ = ["BYTES"]


def _flip_bits(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    array = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        array[int(random.integers(len(array)))] ^= 1 << int(random.integers(8))
    return bytes(array)


def _truncate(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def _splice(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    other = choice(random, others)
    at, begin = int(random.integers(len(content))), int(random.integers(len(other)))
    length = int(random.integers(1, 400))
    return content[:at] + other[begin : begin + length] + content[at + length * int(random.integers(2)) :]


def _repeat(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(random.integers(1, 400))
    return content[:at] + content[at : at + length] * int(random.integers(2, 20)) + content[at + length :]


def _cut(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(random.integers(1, 200))
    return content[:at] + content[at + length :]


def _overwrite(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at, length = int(random.integers(len(content))), int(random.integers(1, 16))
    fill = choice(random, (b"\xff", b"\x00", b"\x7f", b"\x80"))
    return content[:at] + fill * length + content[at + length :]


BYTES: dict[str, Callable[[bytes, Sequence[bytes], Random], bytes]] = {
    "bits": _flip_bits,
    "truncated": _truncate,
    "splice": _splice,
    "repeat": _repeat,
    "cut": _cut,
    "overwrite": _overwrite,
}
