"""Safety: may this file be opened, and may it be given away?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from growpipe.checks.context import Context
from growpipe.checks.measure.protos import all_graphs, all_nodes
from growpipe.checks.measure.trace import module_of
from growpipe.checks.registry import LOAD, register
from growpipe.checks.report import Finding, Outcome, failed, passed
from growpipe.graph_ops.operators import plain_domain

__all__: list[str] = []

_LEAKS = (
    ("a stack trace", re.compile(r'Traceback \(most recent call last\)|File "[^"\n]+", line \d+')),
    (
        "a path of the machine that made it",
        re.compile(
            r"(?:^|[\s\"'=(:,;\[])("
            r"/(?:home|Users|root|mnt|tmp|var|opt|srv|data|workspace|content|private|scratch|work)/[\w.+-]+/[^\s\"']*"
            r"|[A-Za-z]:\\(?:[\w .+-]+\\)+[\w .+-]+"
            r"|\\\\[\w.-]+\\[^\s\"']+"
            r"|/[\w./+-]+\.py\b)"
        ),
    ),
)


@register(
    LOAD,
    "the file can be read safely",
    "copy the external data beside the model, or export the model again",
)
def load(context: Context) -> Outcome:
    """Reads the file without trusting it: its size, its structure, and that its external data are regular
    files inside its own folder, whole, and not links that lead out of it. Libraries of custom operators are
    never loaded.

    A file that fails is never handed to onnxruntime, and nothing else is checked: exit code 4. Copy the
    external data beside the model, or export again.
    """
    model = context.model
    return passed(
        f"{sum(1 for _ in model.graph.all_nodes())} nodes, {len(model.graph.initializers)} initializers"
    )


@register(
    "safety/domains",
    "no operators of domains that are not allowed",
    "allow the domain under safety.domains, or export without these operators",
)
def domains(context: Context) -> Outcome:
    """Operators outside ONNX need a runtime that has them, and custom ones a library that somebody has to
    trust. Domains of functions that the model itself defines are fine.

    Policy: `safety.domains`, the domains that are allowed.
    """
    allowed = {plain_domain(domain) for domain in context.policy.safety.domains} | {""}
    own = {(f.domain, f.name) for f in context.proto.functions}
    findings = [
        Finding(f"domain {node.domain!r} is not allowed", node.name, node.op_type, module=module_of(node))
        for node in all_nodes(context.proto)
        if plain_domain(node.domain) not in allowed and (node.domain, node.op_type) not in own
    ]
    if not findings:
        return passed("all operators are of allowed domains")
    foreign = sorted({f.message.split("'")[1] for f in findings})
    return failed(
        f"{len(findings)} nodes are of domains {foreign}; allow them under safety.domains, or export without",
        *findings,
    )


@register(
    "safety/leaks",
    "no source paths and no stack traces",
    "strip them with growpipe deploy MODEL.onnx -o DIR",
)
def leaks(context: Context) -> Outcome:
    """Exporters write stack traces and absolute paths of the machine they ran on into metadata and doc
    strings. Shipped, they tell strangers about your users, folders and code.

    `growpipe deploy` strips them. To let them pass, set `levels."safety/leaks" = "warning"`.
    """
    findings = []
    for where, text, node in _texts(context.proto):
        for what, pattern in _LEAKS:
            match = pattern.search(text)
            if match:
                shown = " ".join(match.group(0).split())[:120]
                findings.append(
                    Finding(
                        f"{what} in {where}: {shown}",
                        node.name if node else "",
                        node.op_type if node else "",
                        module=module_of(node) if node else "",
                    )
                )
                break
    if not findings:
        return passed("nothing leaks")
    return failed(
        f"{len(findings)} texts give away paths or stack traces; strip them with growpipe deploy",
        *findings,
        value=len(findings),
    )


@register(
    "safety/size",
    "the model is not larger than allowed",
    "raise the limit that is named, or ship a smaller model",
)
def size(context: Context) -> Outcome:
    """Bytes of the file and of its external data, and the number of nodes.

    Policy: `safety.max_bytes`, `safety.max_nodes`.
    """
    limits = context.policy.safety
    total = total_bytes(context.path, context.model)
    nodes = sum(1 for _ in all_nodes(context.proto))
    problems = []
    if total > limits.max_bytes:
        problems.append(f"it has {total} bytes, allowed are {limits.max_bytes} (safety.max_bytes)")
    if nodes > limits.max_nodes:
        problems.append(f"it has {nodes} nodes, allowed are {limits.max_nodes} (safety.max_nodes)")
    if problems:
        return failed("; ".join(problems), bytes=total, nodes=nodes)
    return passed(f"{total} bytes, {nodes} nodes", bytes=total, nodes=nodes)


def total_bytes(path: Path, model: ir.Model) -> int:
    """Bytes of the file and of all files of external data."""
    files = {path.resolve()}
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            files.add(Path(value.const_value.path).resolve())
    return sum(file.stat().st_size for file in files)


def _texts(model: onnx.ModelProto) -> Iterator[tuple[str, str, onnx.NodeProto | None]]:
    """Every free text of a model: where it stands, the text, the node it belongs to."""
    yield "the producer name", f"{model.producer_name} {model.producer_version}", None
    for name, part in _parts(model):
        yield from ((where, text, None) for where, text in _described(name, part))
    for node in all_nodes(model):
        yield from ((where, text, node) for where, text in _described("the node", node))
        for attribute in node.attribute:
            yield f"the doc string of attribute {attribute.name!r}", attribute.doc_string, node


def _parts(model: onnx.ModelProto) -> Iterator[tuple[str, Any]]:
    """Everything but nodes that has a doc string and metadata, with its name in words."""
    yield "the model", model
    yield from ((f"function {function.name!r}", function) for function in model.functions)
    for graph in all_graphs(model):
        yield f"graph {graph.name!r}", graph
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            yield repr(value.name), value


def _described(name: str, thing: Any) -> Iterator[tuple[str, str]]:
    """The texts that every part of a model may have: where they stand, and the text."""
    yield f"the doc string of {name}", thing.doc_string
    for entry in thing.metadata_props:
        yield f"metadata {entry.key!r} of {name}", f"{entry.key} {entry.value}"
