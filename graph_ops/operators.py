"""What a node is: its operator, its domain, and how it is named in messages."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

__all__ = ["attribute_of", "is_onnx", "node_name", "operator_name", "opset_version", "plain_domain"]


def plain_domain(domain: str) -> str:
    """The domain, with ``""`` for both spellings of ONNX's own: ``""`` and ``"ai.onnx"``."""
    return "" if domain == "ai.onnx" else domain


def is_onnx(node: ir.Node | onnx.NodeProto, *operators: str) -> bool:
    """Whether the node is one of ONNX's own operators.

    Args:
        node: the node.
        operators: the operator types to accept; none to accept every operator of ONNX's own domain.

    Example:
        ``is_onnx(node, "Conv", "ConvTranspose")``
    """
    return node.domain in ("", "ai.onnx") and (not operators or node.op_type in operators)


def attribute_of(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute, several numbers as a list; ``default`` if the node does not have it."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return default
    value = attribute.value
    return list(value) if isinstance(value, tuple) else value


def opset_version(model: ir.Model) -> int:
    """The version of ONNX's own operators that the model is written in; 1 if the model does not say."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def node_name(node: ir.Node) -> str:
    """The name of a node; the name of its first named output if the node has no name."""
    if node.name:
        return node.name
    return next((value.name for value in node.outputs if value.name), "")


def operator_name(node: ir.Node) -> str:
    """The operator type, with its domain if that is not ONNX's own."""
    return node.op_type if is_onnx(node) else f"{node.domain}::{node.op_type}"
