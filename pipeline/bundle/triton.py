"""The configuration of a model for the Triton inference server, as protobuf text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from growpipe.graph_ops.errors import UsageError

__all__ = ["triton_config"]

_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32",
    "int64": "TYPE_INT64", "float16": "TYPE_FP16", "float": "TYPE_FP32", "double": "TYPE_FP64",
    "string": "TYPE_STRING", "bfloat16": "TYPE_BF16",
}  # fmt: skip
_MOST_BATCH = 64
_DELAY = 500  # microseconds that a request may wait for others


def triton_config(name: str, card: Mapping[str, Any], labels: str | None) -> str:
    """``config.pbtxt`` of a model; requests are batched dynamically if the model's batch is free.

    Args:
        name: of the model.
        card: describes inputs and outputs.
        labels: the file of labels, which the first output gets; None without labels.

    Raises:
        UsageError: Triton cannot serve an input or output.
    """
    values = [*card["inputs"], *card["outputs"]]
    # The first axis of all is the batch if none of them has a fixed length there.
    batched = all(value["shape"] and not isinstance(value["shape"][0], int) for value in values)
    lines = [
        f"name: {_quoted(name)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {_MOST_BATCH if batched else 0}",
        *(_tensor("input", value, batched, None) for value in card["inputs"]),
        *(
            _tensor("output", value, batched, labels if not i else None)
            for i, value in enumerate(card["outputs"])
        ),
        "instance_group [ { kind: KIND_AUTO } ]",
    ]
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY} }}")
    return "\n".join(lines) + "\n"


def _tensor(kind: str, value: Mapping[str, Any], batched: bool, labels: str | None) -> str:
    if value["type"] not in _TYPES or value["shape"] is None:
        raise UsageError(f"Triton cannot serve {kind} {value['name']!r}: its type or its rank is not known")
    dims: Sequence[object] = value["shape"][1:] if batched else value["shape"]
    # Without a batch Triton wants at least one dimension: a scalar is a vector that is reshaped.
    shown = ", ".join(str(d) if isinstance(d, int) else "-1" for d in dims) or "1"
    reshape = "" if dims else " reshape { shape: [ ] }"
    label = "" if labels is None else f" label_filename: {_quoted(labels)}"
    return (
        f"{kind} [ {{ name: {_quoted(value['name'])} data_type: {_TYPES[value['type']]} "
        f"dims: [ {shown} ]{reshape}{label} }} ]"
    )


def _quoted(words: str) -> str:
    """A string of protobuf text: bytes beyond ASCII and quotes are escaped as octal numbers."""
    plain = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in words.encode())
    return f'"{plain}"'
