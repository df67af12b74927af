"""`growpipe.graph_ops` works where torch is not installed."""

from __future__ import annotations

import ast
from pathlib import Path

import growpipe.graph_ops
from tests.helpers.torch_free import TORCH, python_without

FOLDER = Path(growpipe.graph_ops.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))

SCRIPT = """
import importlib, pkgutil, sys
import growpipe.graph_ops
for module in pkgutil.walk_packages(growpipe.graph_ops.__path__, "growpipe.graph_ops."):
    importlib.import_module(module.name)
foreign = {n for n in sys.modules if n.startswith("growpipe.") and not n.startswith("growpipe.graph_ops")}
assert not foreign, foreign

import numpy as np
import onnx_ir as ir
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.split_plan import GroupSplit, SplitPlan, hash_parameters
from growpipe.graph_ops.edit.grow_graph import grow_graph

model = ir.from_onnx_text('''
<ir_version: 9, opset_import: ["" : 18]>
tiny (float[n,2] x) => (float[n,1] y)
<float[2,3] a = {1, 2, 3, 4, 5, 6}, float[3,1] b = {1, 2, 3}>
{ h = MatMul (x, a) r = Relu (h) y = MatMul (r, b) }
''')
groups = find_channel_groups(model)
split = GroupSplit("a", 3, np.array([0, 1, 2, 1]), np.array([1.0, 1.5, 1.0, -0.5]))
layouts = groups.restricted(["a"])
tensors = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
digest = hash_parameters(layouts, tensors.__getitem__)
plan = SplitPlan((split,), layouts, 0.0, groups.graph_hash, digest, "test")
grown = grow_graph(model, plan)
print(grown.graph.initializers["b"].const_value.numpy().ravel().tolist())
"""


def test_graph_ops_works_without_torch_and_without_the_rest_of_growpipe():
    done = python_without((*TORCH, "onnxruntime"), SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[1.0, 3.0, 3.0, -1.0]"


def test_no_module_of_graph_ops_imports_torch_or_the_rest_of_growpipe():
    assert MODULES
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name} imports relatively"
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top != "torch", f"{path.name} imports torch"
                assert top != "growpipe" or name.startswith("growpipe.graph_ops"), f"{path.name}: {name}"


def test_the_public_names_are_found_at_their_first_use() -> None:
    script = """
import sys
import growpipe.graph_ops as graph_ops
assert not {"onnx", "onnx_ir", "numpy"} & sys.modules.keys()
for name in graph_ops.__all__:
    assert getattr(graph_ops, name).__module__.startswith("growpipe.graph_ops."), name
"""
    done = python_without(TORCH, script)
    assert done.returncode == 0, done.stderr
