"""How much a protobuf file will unfold to, found before it is parsed.

Two bytes on disk can become a message of more than a hundred bytes in memory. A large model file is
therefore walked once, without building anything, and refused when it holds more fields than any honest model.
"""

from __future__ import annotations

import mmap
from typing import IO

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from growpipe.graph_ops.errors import UnsafeModel

__all__ = ["MAX_FIELDS", "MAX_VARINT_BYTES", "check_wire"]

MAX_FIELDS = 8_000_000
"""A graph of 100,000 nodes with all the metadata that torch writes has about half of these."""

MAX_VARINT_BYTES = 2**28
"""Packed integers take up to eight times their size on disk."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100  # protobuf's own limit
_TRUNCATED = "it is not an ONNX model, or is truncated"
_PACKED_VARINTS = frozenset(
    {
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_ENUM,
        FieldDescriptor.TYPE_BOOL,
    }
)


def check_wire(file: IO[bytes]) -> None:
    """Walk the fields of a serialised ``ModelProto`` and refuse one that would unfold out of proportion.

    Raises:
        UnsafeModel: more than `MAX_FIELDS` fields, more than `MAX_VARINT_BYTES` of packed integers, messages
            nested deeper than protobuf reads, or bytes that are not protobuf.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _walk(data, onnx.ModelProto.DESCRIPTOR)


def _walk(data: mmap.mmap, root: Descriptor) -> None:
    tables: dict[str, dict[int, Descriptor | None]] = {}

    def table(descriptor: Descriptor) -> dict[int, Descriptor | None]:
        """By field number: the message inside, or None for packed integers; everything else is skipped."""
        known = tables.get(descriptor.full_name)
        if known is None:
            known = tables[descriptor.full_name] = {
                field.number: field.message_type
                for field in descriptor.fields
                if field.message_type is not None or field.type in _PACKED_VARINTS
            }
        return known

    fields = varint_bytes = 0
    # What is still to be walked: start, end, the fields known there, depth.
    pending = [(0, len(data), table(root), 0)]
    while pending:
        position, end, known, depth = pending.pop()
        while position < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise UnsafeModel(f"it holds more than {MAX_FIELDS} fields, which no honest model does")
            key, position = _varint(data, position, end)
            wire_type = key & 7
            if wire_type == _VARINT:
                _, position = _varint(data, position, end)
            elif wire_type == _LENGTH:
                length, position = _varint(data, position, end)
                if length > end - position:
                    raise UnsafeModel(_TRUNCATED)
                inner = known.get(key >> 3, _SKIPPED)
                if inner is None:
                    varint_bytes += length
                    if varint_bytes > MAX_VARINT_BYTES:
                        raise UnsafeModel(
                            f"it stores more than {MAX_VARINT_BYTES} bytes of integers one by one; "
                            "store tensors as raw data"
                        )
                elif isinstance(inner, Descriptor):
                    if depth >= _MAX_DEPTH:
                        raise UnsafeModel(f"its messages are nested more than {_MAX_DEPTH} deep")
                    pending.append((position, position + length, table(inner), depth + 1))
                position += length
            elif wire_type == _FIXED64:
                position += 8
            elif wire_type == _FIXED32:
                position += 4
            else:
                raise UnsafeModel(_TRUNCATED)
        if position > end:
            raise UnsafeModel(_TRUNCATED)


_SKIPPED = object()


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise UnsafeModel(_TRUNCATED)
