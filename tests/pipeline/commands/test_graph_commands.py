"""The commands that need nothing but an ONNX file: inspect, plan, grow, deploy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from growpipe.cli import main
from growpipe.graph_ops.edit import bundle
from growpipe.graph_ops.edit import grow_graph as grow_graph_module
from growpipe.graph_ops.edit.deploy import deploy_form
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.files.load_save import load_model, save_model
from growpipe.graph_ops.plan.split_plan import SplitPlan
from tests.graph_ops.groups.test_channel_groups import with_values
from tests.helpers.torch_free import TORCH, python_without

pytestmark = pytest.mark.slow

BODY = """
    a = Conv<pads=[1,1,1,1]>(x, w1)
    n = BatchNormalization(a, scale, bias, mean, var)
    r = Relu(n)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w2)
"""


def build(width: int = 6, seed: int = 0) -> ir.Model:
    shapes: dict[str, tuple[int, ...]] = {"w1": (width, 3, 3, 3), "w2": (4, width)}
    shapes |= dict.fromkeys(("scale", "bias", "mean", "var"), (width,))
    declared = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[N,3,8,8] x, {declared}) => (float[N,4] y)'
    model = ir.from_onnx_text(text + f" {{ {BODY} }}")
    rng = np.random.default_rng(seed)
    for value in list(model.graph.inputs)[1:]:
        array = np.abs(rng.standard_normal(shapes[value.name])).astype(np.float32) + 0.1
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    save_model(build(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def growpipe(capsys):
    def run(*args: str) -> Result:
        with pytest.raises(SystemExit) as exit_:
            main(list(args))
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Result(exit_.value.code, captured.out, captured.err)

    return run


def assert_refused(result: Result, code: int, message: str) -> None:
    assert result.code == code, result.err
    assert message in result.err
    assert result.err.startswith("growpipe: ")
    assert result.err.count("\n") == 1
    assert result.out == ""


class TestInspect:
    def test_json(self, folder, growpipe):
        result = growpipe("inspect", "model.onnx", "--json")
        assert result.code == 0
        document = json.loads(result.out)
        groups = {group["name"]: group for group in document["groups"]}
        hidden = groups["w1"]
        assert (hidden["width"], hidden["splittable"], hidden["barrier"]) == (6, True, None)
        roles = {(m["tensor"], m["axis"], m["role"]) for m in hidden["members"]}
        carried = {(name, 0, "carried") for name in ("scale", "bias", "mean", "var")}
        assert roles == {("w1", 0, "made"), ("w2", 1, "mixed")} | carried
        # One channel more: a 3 x 3 x 3 filter, scale and bias of the batch norm, four weights after it.
        assert hidden["parameters_per_channel"] == 27 + 2 + 4
        assert hidden["macs_per_channel"] == 27 * 64 + 4
        assert document["parameters"] == 6 * 27 + 2 * 6 + 4 * 6
        assert document["macs"] == 6 * 27 * 64 + 4 * 6
        blocked = groups["w2"]["barrier"]
        assert (blocked["operator"], blocked["node"]) == ("Output", "y")
        assert document["history"] == []

    def test_table(self, folder, growpipe):
        result = growpipe("inspect", "model.onnx", "--freeze", "w1")
        assert result.code == 0
        assert "w1[0] made" in result.out
        assert "kept by --freeze w1" in result.out
        assert "\x1b" not in result.out

    def test_freezing_nothing(self, folder, growpipe):
        assert_refused(growpipe("inspect", "model.onnx", "--freeze", "nope"), 2, "matches no tensor")


class TestBodies:
    def test_a_branch_from_inspect_to_deploy(self, folder, growpipe):
        text = """
            <ir_version: 10, opset_import: ["": 20]>
            g (float[n,4] x, bool c) => (float[n,2] y) <float[4,2] f> {
                y = If (c) <then_branch = t () => (float[n,2] p) <float[4,6] w, float[6,2] v> {
                                h = MatMul (x, w) r = Relu (h) p = MatMul (r, v)
                            }, else_branch = o () => (float[n,2] q) { q = MatMul (x, f) }>
            }
        """
        save_model(with_values(onnx.parser.parse_model(text)), folder / "model.onnx")
        shown = json.loads(growpipe("inspect", "model.onnx", "--json").out)
        splittable = [group["name"] for group in shown["groups"] if group["splittable"]]
        assert splittable == ["y/then_branch/w"]
        assert shown["macs"] == shown["parameters"] == 4 * 6 + 6 * 2 + 4 * 2
        assert (shown["uncounted"], shown["alternatives"]) == ([], ["If y"])
        assert "all branches are counted, though one runs: If y" in growpipe("inspect", "model.onnx").err

        assert growpipe("plan", "model.onnx", "--random", "--growth", "0.5", "-o", "plan").code == 0
        grown = growpipe("grow", "model.onnx", "--plan", "plan", "-o", "wider.onnx")
        assert grown.code == 0
        assert "parity at ε = 0 verified" in grown.out + grown.err
        (step,) = json.loads(growpipe("inspect", "wider.onnx", "--json").out)["history"]
        assert step["widths"] == {"y/then_branch/w": [6, 9]}
        changed = json.loads(growpipe("diff", "model.onnx", "wider.onnx", "--json").out)
        assert [tensor["name"] for tensor in changed["tensors"]] == ["y/then_branch/w", "y/then_branch/v"]
        deployed = growpipe("deploy", "wider.onnx", "-o", "bundle")
        assert deployed.code == 0
        assert "verified" in deployed.out + deployed.err


class TestPlanAndGrow:
    def test_the_whole_way(self, folder, growpipe):
        planned = growpipe("plan", "model.onnx", "--random", "--growth", "0.5", "-o", "plan", "--json")
        assert planned.code == 0
        facts = json.loads(planned.out)
        assert facts["groups"] == [{"name": "w1", "width": 6, "grown_width": 9}]
        assert facts["plan_hash"] == SplitPlan.load("plan").content_hash

        before = (folder / "model.onnx").read_bytes()
        grown = growpipe("grow", "model.onnx", "--plan", "plan", "-o", "out.onnx", "--json")
        assert grown.code == 0
        assert json.loads(grown.out)["parameters"] == facts["parameters"]
        assert json.loads(grown.out)["macs"] == facts["macs"]
        assert (folder / "model.onnx").read_bytes() == before
        tensor = load_model("out.onnx").graph.initializers["w1"].const_value
        assert tensor is not None
        assert tensor.shape == (9, 3, 3, 3)

        (step,) = json.loads(growpipe("inspect", "out.onnx", "--json").out)["history"]
        assert step["widths"] == {"w1": [6, 9]}
        assert step["plan_hash"] == facts["plan_hash"]

        text = growpipe("grow", "model.onnx", "--plan", "plan", "-o", "out.onnx").out
        assert "1 channel groups grown by 3 channels" in text

    def test_parity_is_verified_before_anything_is_written(self, folder, growpipe, monkeypatch):
        growpipe("plan", "model.onnx", "--random", "--epsilon", "0.5", "-o", "plan")
        result = growpipe("grow", "model.onnx", "--plan", "plan", "-o", "out.onnx")
        assert "parity at ε = 0 verified in onnxruntime" in result.out.splitlines()[-1]
        facts = growpipe(
            "grow", "model.onnx", "--plan", "plan", "-o", "out.onnx", "--no-verify", "--json"
        ).out
        assert json.loads(facts)["verification"]["reason"] == "not asked for"

        def wrong(*arguments):
            grown = grow_graph(*arguments)
            next(node for node in grown.graph if node.op_type == "Relu").op_type = "Tanh"
            return grown

        monkeypatch.setattr(grow_graph_module, "grow_graph", wrong)
        refused = growpipe("grow", "model.onnx", "--plan", "plan", "-o", "new.onnx")
        assert_refused(refused, 1, "the model grown at ε = 0 computes something else")
        assert not Path("new.onnx").exists()

    def test_net2net(self, folder, growpipe):
        assert growpipe("plan", "model.onnx", "--net2net", "--growth", "0.5", "-o", "plan").code == 0
        assert SplitPlan.load("plan").scheme == "net2net"
        assert growpipe("grow", "model.onnx", "--plan", "plan", "-o", "out.onnx").code == 0

    def test_frozen_tensors_are_left_alone(self, folder, growpipe):
        result = growpipe("plan", "model.onnx", "--random", "--freeze", "w*", "-o", "plan")
        assert_refused(result, 2, "no channel group of the model can split")
        assert not Path("plan").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "--random or --net2net"),
            (["--net2net", "--epsilon", "0.1"], "--epsilon goes with --random"),
            (["--random", "--growth", "0"], "growth"),
            (["--random", "--epsilon", "-1"], "epsilon"),
            (["--random", "--seed", "-1"], "--seed"),
        ],
    )
    def test_options_that_make_no_plan(self, folder, growpipe, options, message):
        assert_refused(growpipe("plan", "model.onnx", *options, "-o", "plan"), 2, message)
        assert not Path("plan").exists()

    def test_a_plan_of_another_model(self, folder, growpipe):
        save_model(build(width=7), "wider.onnx")
        save_model(build(seed=1), "retrained.onnx")
        growpipe("plan", "model.onnx", "--random", "-o", "plan")
        for other in ("wider.onnx", "retrained.onnx"):
            assert_refused(
                growpipe("grow", other, "--plan", "plan", "-o", "out.onnx"), 2, "plan was not made for"
            )
        assert not Path("out.onnx").exists()

    def test_the_working_folder_is_never_replaced(self, folder, growpipe, monkeypatch):
        growpipe("plan", "model.onnx", "--random", "-o", "plan")
        before = sorted((folder / "plan").iterdir())
        monkeypatch.chdir(folder / "plan")
        for place in (".", "../plan", ".."):
            refused = growpipe("plan", "../model.onnx", "--random", "-o", place)
            assert_refused(refused, 2, "working folder")
        assert sorted((folder / "plan").iterdir()) == before

    def test_places_that_cannot_be_written(self, folder, growpipe):
        growpipe("plan", "model.onnx", "--random", "-o", "plan")
        before = (folder / "model.onnx").read_bytes()
        assert_refused(
            growpipe("grow", "model.onnx", "--plan", "plan", "-o", "model.onnx"), 2, "is not overwritten"
        )
        assert_refused(
            growpipe("grow", "model.onnx", "--plan", "plan", "-o", "./plan/../model.onnx"), 2, "is not"
        )
        assert_refused(growpipe("grow", "model.onnx", "--plan", "plan", "-o", "plan"), 2, "is a folder")
        assert_refused(
            growpipe("grow", "model.onnx", "--plan", "plan", "-o", "absent/out.onnx"), 2, "no folder"
        )
        assert_refused(growpipe("grow", "model.onnx", "--plan", "absent", "-o", "out.onnx"), 2, "no plan at")
        assert_refused(growpipe("plan", "model.onnx", "--random", "-o", "model.onnx"), 2, "is a file")
        assert (folder / "model.onnx").read_bytes() == before
        assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "plan"]


class TestDeploy:
    def test_the_bundle(self, folder, growpipe):
        growpipe("plan", "model.onnx", "--random", "-o", "plan")
        growpipe("grow", "model.onnx", "--plan", "plan", "-o", "out.onnx")
        result = growpipe("deploy", "out.onnx", "-o", "bundle", "--json")
        assert result.code == 0
        card = json.loads(result.out)
        assert card == json.loads(Path("bundle/card.json").read_text())
        assert card["inputs"] == [{"name": "x", "type": "float", "shape": ["N", 3, 8, 8]}]
        assert card["outputs"] == [{"name": "y", "type": "float", "shape": ["N", 4]}]
        assert card["opsets"] == {"": 20}
        # Fused: eight filters with a bias, and the matrix after them.
        assert card["parameters"] == 8 * 27 + 8 + 4 * 8
        assert [step["widths"] for step in card["growth"]] == [{"w1": [6, 8]}]
        assert card["files"]["model.onnx"]["bytes"] == Path("bundle/model.onnx").stat().st_size
        assert "BatchNormalization" not in [node.op_type for node in load_model("bundle/model.onnx").graph]
        # Again, over the bundle that is there.
        assert growpipe("deploy", "out.onnx", "-o", "bundle").code == 0
        assert sorted(path.name for path in Path("bundle").iterdir()) == [
            "README.md",
            "SHA256SUMS",
            "bom.cdx.json",
            "card.json",
            "model.onnx",
        ]

    def test_folders_that_are_something_else(self, folder, growpipe):
        assert_refused(growpipe("deploy", "model.onnx", "-o", "."), 2, "working folder")
        assert_refused(growpipe("deploy", "model.onnx", "-o", "model.onnx"), 2, "is a file")
        assert_refused(growpipe("deploy", "model.onnx", "-o", "absent/bundle"), 2, "no folder")
        assert [path.name for path in folder.iterdir()] == ["model.onnx"]

    def test_what_is_published_has_been_verified(self, folder, growpipe, monkeypatch):
        result = growpipe("deploy", "model.onnx", "-o", "bundle")
        assert "verified in onnxruntime on 4 sets" in result.out.splitlines()[-1]
        verification = json.loads(Path("bundle/card.json").read_text())["verification"]
        assert verification["verified"]
        assert verification["relative"] < verification["limit"] == 1e-4

        def wrong(model: ir.Model) -> ir.Model:
            form = deploy_form(model)
            next(node for node in form.graph if node.op_type == "Relu").op_type = "Tanh"
            return form

        monkeypatch.setattr(bundle, "deploy_form", wrong)
        refused = growpipe("deploy", "model.onnx", "-o", "other")
        assert_refused(refused, 1, "the deploy form computes something else")
        assert "the first comparable node that differs is GlobalAveragePool" in refused.err
        assert not Path("other").exists()
        before = Path("bundle/card.json").read_bytes()
        assert_refused(growpipe("deploy", "model.onnx", "-o", "bundle"), 1, "something else")
        assert Path("bundle/card.json").read_bytes() == before

    @pytest.mark.parametrize("file", ["README.md", ".git/HEAD", "weights/model.onnx"])
    def test_a_bundle_that_has_become_a_folder_of_others(self, folder, growpipe, file):
        assert growpipe("deploy", "model.onnx", "-o", "bundle").code == 0
        (folder / "bundle" / file).parent.mkdir(exist_ok=True)
        (folder / "bundle" / file).write_text("mine")
        before = (folder / "bundle" / "model.onnx").read_bytes()
        save_model(build(seed=1), "other.onnx")
        assert_refused(growpipe("deploy", "other.onnx", "-o", "bundle"), 2, "growpipe did not write there")
        assert (folder / "bundle" / file).read_text() == "mine"
        assert (folder / "bundle" / "model.onnx").read_bytes() == before

    def test_a_bundle_whose_model_was_changed_by_hand(self, folder, growpipe):
        assert growpipe("deploy", "model.onnx", "-o", "bundle").code == 0
        save_model(build(seed=1), "bundle/model.onnx")
        before = (folder / "bundle" / "model.onnx").read_bytes()
        assert_refused(growpipe("deploy", "model.onnx", "-o", "bundle"), 2, "growpipe did not write there")
        assert (folder / "bundle" / "model.onnx").read_bytes() == before

    def test_a_bundle_that_is_itself_deployed_stays(self, folder, growpipe):
        assert growpipe("deploy", "model.onnx", "-o", "bundle").code == 0
        assert_refused(growpipe("deploy", "bundle/model.onnx", "-o", "bundle"), 2, "which is read")
        (folder / "link").symlink_to("bundle")
        assert_refused(growpipe("deploy", "model.onnx", "-o", "link"), 2, "is a link")

    def test_a_model_with_wrong_widths(self, folder, growpipe):
        wrong = build()
        narrow = ir.tensor(np.zeros((4, 5), np.float32), name="w2")
        wrong.graph.initializers["w2"].const_value = narrow
        wrong.graph.initializers["w2"].shape = ir.Shape((4, 5))
        save_model(wrong, "wrong.onnx")
        assert_refused(growpipe("deploy", "wrong.onnx", "-o", "bundle"), 1, "the model is not sound")
        assert not Path("bundle").exists()


COMMANDS = {
    "inspect": ["inspect", "bad.onnx"],
    "plan": ["plan", "bad.onnx", "--random", "-o", "new"],
    "grow": ["grow", "bad.onnx", "--plan", "plan", "-o", "new"],
    "deploy": ["deploy", "bad.onnx", "-o", "new"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "truncated", "text", "outside"])
def test_models_that_cannot_be_read(folder, growpipe, command, kind):
    growpipe("plan", "model.onnx", "--random", "-o", "plan")
    bad = folder / "bad.onnx"
    match kind:
        case "folder":
            bad.mkdir()
        case "empty":
            bad.touch()
        case "truncated":
            bad.write_bytes((folder / "model.onnx").read_bytes()[:-30])
        case "text":
            bad.write_text("a model\n" * 100)
        case "outside":
            save_model(load_model("model.onnx"), bad, external_data=True)
            (folder / "bad.onnx.data").rename(folder.parent / "moved.data")
            (folder / "bad.onnx.data").symlink_to(folder.parent / "moved.data")
    before = sorted(path.name for path in folder.iterdir())
    assert_refused(growpipe(*COMMANDS[command]), 4, "bad.onnx")
    assert sorted(path.name for path in folder.iterdir()) == before


NO_TORCH = """
from growpipe.cli import main
for args in (
    ["inspect", "model.onnx"],
    ["plan", "model.onnx", "--random", "-o", "plan"],
    ["grow", "model.onnx", "--plan", "plan", "-o", "out.onnx"],
    ["deploy", "out.onnx", "-o", "bundle"],
):
    try:
        main(args)
    except SystemExit as stop:
        assert stop.code == 0, (args, stop.code)
"""


def test_all_of_it_works_without_torch(folder):
    done = python_without((*TORCH, "onnxruntime"), NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert (folder / "bundle" / "card.json").is_file()


@pytest.mark.parametrize("operator", ["Sigmoid (x)", "Mul (x, x)", "ReduceMax <keepdims = 0> (x)"])
def test_model_without_a_weight(folder, growpipe, operator):
    """Nothing can grow, and both commands say why."""
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[3,2] x) => (float y) {{ y = {operator} }}'
    save_model(ir.from_onnx_text(text), "none.onnx")
    reason = "no channel group: no operator of it makes or mixes channels with a stored weight"
    inspected = growpipe("inspect", "none.onnx")
    assert inspected.code == 0
    assert reason in inspected.err
    planned = growpipe("plan", "none.onnx", "--random", "--growth", "0.3", "-o", "plan")
    assert planned.code == 2
    assert reason in planned.err
    assert not Path("plan").exists()
