"""The smallest part of a mutated file that still shows the same fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message
from onnx import GraphProto, ModelProto, printer

from benchmarks.graph.fuzz_input import epsilon_of, made, run_content
from benchmarks.graph.fuzz_seeds import seeds

__all__ = ["minimise"]

_LISTS = ("node", "initializer", "value_info", "input", "output", "metadata_props")


def minimise(work: Path, seed: int, number: int) -> None:
    """Shrink input ``number``, print what is left in ONNX's text form, and keep it beside the journal."""
    content, _ = made(seeds(work), seed, number)
    folder = work / f"minimise-{seed}-{number}"

    def fault(candidate: bytes) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return str(run_content(candidate, folder, epsilon_of(number))["fault"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    wanted = _signature(fault(content))
    if not wanted:
        print(f"input {number} shows no fault")
        return
    smallest = shrink(content, lambda candidate: _signature(fault(candidate)) == wanted)
    place = work / f"minimal-{seed}-{number}.onnx"
    place.write_bytes(smallest)
    print(f"{fault(smallest)}\n{place}: {len(smallest)} bytes of {len(content)}")
    model = ModelProto()
    try:
        model.ParseFromString(smallest)
        print(printer.to_text(model))
    except (DecodeError, UnicodeDecodeError, RuntimeError) as error:
        print(f"it has no text form: {error}")


def _signature(fault: str) -> str:
    """A fault without what belongs to one file: the kind, the exception and the place."""
    kind, _, rest = fault.partition(": ")
    return f"{kind}: {rest.partition(': ')[0]}" if fault else ""


def shrink(content: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Take parts away for as long as ``fails`` says that the fault is still there."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return _shrink_bytes(content, fails)
    if not fails(model.SerializeToString()):
        return _shrink_bytes(content, fails)
    smaller = True
    while smaller:
        smaller = False
        for take in _removals(model):
            before = model.SerializeToString()
            take()
            after = model.SerializeToString()
            if len(after) < len(before) and fails(after):
                smaller = True
            else:
                model.ParseFromString(before)
    return model.SerializeToString()


def _removals(model: ModelProto) -> Iterator[Callable[[], None]]:
    """Ways to make the model smaller, the largest first; each works on the model as it then is."""
    for size in (64, 16, 4, 1):
        for name in ("functions", "opset_import", "metadata_props"):
            yield from (_cut(model, name, at, size) for at in range(len(getattr(model, name)) - 1, -1, -size))
        for index in range(len(_graphs(model))):
            for name in _LISTS:
                count = len(getattr(_graphs(model)[index], name)) if index < len(_graphs(model)) else 0
                yield from (_cut_graph(model, index, name, at, size) for at in range(count - 1, -1, -size))
    for index in range(len(_graphs(model))):
        graph = _graphs(model)[index] if index < len(_graphs(model)) else GraphProto()
        for position in range(len(graph.node)):
            for name in ("attribute", "input", "output"):
                count = len(getattr(graph.node[position], name)) if position < len(graph.node) else 0
                for at in range(count - 1, -1, -1):
                    yield _cut_node(model, index, position, name, at)


def _cut(message: Message, name: str, at: int, size: int) -> Callable[[], None]:
    def take() -> None:
        entries = getattr(message, name)
        del entries[max(0, at - size + 1) : at + 1]

    return take


def _cut_graph(model: ModelProto, index: int, name: str, at: int, size: int) -> Callable[[], None]:
    def take() -> None:
        graphs = _graphs(model)
        if index < len(graphs):
            _cut(graphs[index], name, at, size)()

    return take


def _cut_node(model: ModelProto, index: int, position: int, name: str, at: int) -> Callable[[], None]:
    def take() -> None:
        graphs = _graphs(model)
        if index < len(graphs) and position < len(graphs[index].node):
            _cut(graphs[index].node[position], name, at, 1)()

    return take


def _graphs(model: ModelProto) -> list[GraphProto]:
    found = [model.graph]
    for graph in found:
        for node in graph.node:
            found += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def _shrink_bytes(content: bytes, fails: Callable[[bytes], bool]) -> bytes:
    size = len(content) // 2
    while size:
        at = 0
        while at < len(content):
            candidate = content[:at] + content[at + size :]
            if candidate and fails(candidate):
                content = candidate
            else:
                at += size
        size //= 2
    return content
