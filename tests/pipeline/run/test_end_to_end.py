"""The whole chain on real digits, with few epochs: its artifacts, its resumption, its refusals."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from growpipe.cli import main

# A run is many processes long, and the machine may be shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
name = "quick"
model = "growpipe.models.digits:build"
data = "growpipe.data.digits:loaders"
inputs = ["image"]
outputs = ["logits"]
[train]
epochs = 4
final_epochs = 6
threads = 1
[growth]
rounds = 2
share = 0.5
samples = 256
[control]
seed_control = true
[budget]
parameters = 900
"""

# Children start from a server that has everything imported, so that a killed run costs only its own time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["growpipe.run.loop", "growpipe.commands.run", "growpipe.analyser"])


def growpipe(
    *args: str, errors: Path | None = None, file_size_limit: int | None = None
) -> multiprocessing.process.BaseProcess:
    """The command line in a process of its own; its stderr goes to the file ``errors``."""
    process = _SERVER.Process(target=_child, args=(args, errors, file_size_limit))
    process.start()
    return process


def _child(args: tuple[str, ...], errors: Path | None, file_size_limit: int | None) -> None:
    with Path(errors or os.devnull).open("w") as file:
        os.dup2(file.fileno(), 2)
    with Path(os.devnull).open("w") as file:
        os.dup2(file.fileno(), 1)
    if file_size_limit is not None:
        # What a full disk looks like to a program: writing fails.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    main(list(args))


def finished(process: multiprocessing.process.BaseProcess, timeout: float = 800) -> int | None:
    process.join(timeout)
    return process.exitcode


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def undisturbed(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A finished run and the seconds it took."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    started = time.monotonic()
    assert finished(growpipe("run", recipe, "--out", str(folder))) == 0
    return folder, time.monotonic() - started


def without_timing(summary: Path) -> list[dict[str, object]]:
    rows = json.loads(summary.read_text())["rows"]
    return [{key: value for key, value in row.items() if not key.startswith("latency")} for row in rows]


def test_the_final_artifacts_are_what_was_promised(undisturbed: tuple[Path, float]) -> None:
    final = undisturbed[0] / "final"
    model = onnx.load(final / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["image"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert "BatchNormalization" in {n.op_type for n in onnx.load(final / "growth.onnx").graph.node}
    assert ".py" not in str(model)
    image = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    sessions = [
        InferenceSession(final / name, providers=["CPUExecutionProvider"])
        for name in ("model.onnx", "growth.onnx")
    ]
    logits, growth_logits = (session.run(["logits"], {"image": image})[0] for session in sessions)
    assert logits.shape == (5, 10)
    np.testing.assert_allclose(logits, growth_logits, atol=1e-5 * np.abs(growth_logits).max())


def test_the_page_of_the_run_is_made_anew_alike(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    folder, page = undisturbed[0], tmp_path / "page.html"
    assert finished(growpipe("report", str(folder), "--html", str(page))) == 0
    text = page.read_text(encoding="utf-8")
    assert text == (folder / "final" / "report.html").read_text(encoding="utf-8")
    # Rounds with their groups' spectra and reasons; the rival and the control; marks for five networks.
    assert text.count('class="spectrum"') == 8
    assert text.count('class="split"') == 2
    assert text.count('role="img" aria-label="round') == 3
    assert len(text) < 200_000


def test_every_round_is_accounted_for(undisturbed: tuple[Path, float]) -> None:
    folder = undisturbed[0]
    rows = json.loads((folder / "final" / "summary.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["round 0", "round 1", "round 2", "rival", "control"]
    parameters = [row["parameters"] for row in rows[:3]]
    assert parameters == sorted(set(parameters))
    assert parameters[-1] <= 900
    for row in rows[1:3]:
        assert row["parity"] <= 1e-5
        assert row["predicted_change"] < 0
        assert row["realised_change"] is not None
        assert 0 < row["latency_low"] <= row["latency_ratio"] <= row["latency_high"]
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([e for e in epochs if e["stage"].startswith("round")]) == rows[2]["epochs"]
    assert rows[4]["epochs"] == rows[2]["epochs"], "the control has as many epochs as the grown network"
    assert rows[4]["widths"] == rows[0]["widths"]


def test_the_rival_is_as_large_and_as_dear_as_growth(undisturbed: tuple[Path, float]) -> None:
    folder = undisturbed[0]
    summary = json.loads((folder / "final" / "summary.json").read_text())
    *_, grown, rival, _ = summary["rows"]
    seed = summary["rows"][0]
    # Every width is the seed's times one factor, and one channel more everywhere would be too much.
    factors = [width / own for width, own in zip(rival["widths"], seed["widths"], strict=True)]
    assert max(factors) - min(factors) <= 1 / min(seed["widths"])
    assert 0.75 * grown["parameters"] < rival["parameters"] <= grown["parameters"]
    # Growth paid for its analyses too, and the rival may train on for that.
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = 0
    for row, stage in zip(summary["rows"], ("round-00", "round-01", "round-02"), strict=False):
        training += sum(3 * row["macs"] * e["samples"] for e in epochs if e["stage"] == f"{stage}/train")
    assert grown["training_macs"] > training
    one_epoch = rival["training_macs"] / rival["epochs"]
    assert grown["training_macs"] - one_epoch < rival["training_macs"] <= grown["training_macs"]
    assert rival["training_macs"] == 3 * rival["macs"] * 960 * rival["epochs"]


def test_the_better_network_on_validation_is_deployed(undisturbed: tuple[Path, float]) -> None:
    folder = undisturbed[0]
    summary = json.loads((folder / "final" / "summary.json").read_text())
    *_, grown, rival, _ = summary["rows"]
    facts = {
        "grown": json.loads((folder / "round-02/train/manifest.json").read_text())["facts"],
        "rival": json.loads((folder / "control/rival/manifest.json").read_text())["facts"]["training"],
    }
    best = max(facts, key=lambda n: (facts[n]["validation_score"], -facts[n]["validation_loss"]))
    assert summary["deployed"] == best
    place = {"grown": "round-02/export", "rival": "control/rival"}[best]
    shipped, chosen = (onnx.load(folder / name / "growth.onnx") for name in ("final", place))
    # What is shipped also says how inputs are prepared and how well it did.
    assert {p.key for p in chosen.metadata_props} < {p.key for p in shipped.metadata_props}
    for model in (shipped, chosen):
        model.ClearField("metadata_props")
    assert shipped == chosen
    assert f"grown {100 * grown['test_score']:.1f} %" in summary["verdict"]
    assert f"uniform from scratch {100 * rival['test_score']:.1f} %" in summary["verdict"]
    assert "at the same parameters" in summary["verdict"]
    assert summary["verdict"] in (folder / "final/summary.md").read_text()


@pytest.mark.parametrize("finish", ["continue", "rival"])
def test_a_recipe_can_name_what_is_deployed(
    undisturbed: tuple[Path, float], tmp_path: Path, finish: str
) -> None:
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    named = tmp_path / "named.toml"
    named.write_text(RECIPE.replace("samples = 256", f'samples = 256\nfinish = "{finish}"'))
    assert finished(growpipe("run", str(named), "--out", str(folder), errors=tmp_path / "err")) == 0
    again = [line for line in (tmp_path / "err").read_text().splitlines() if "skipped" not in line]
    assert {line.partition(":")[0] for line in again} <= {"final"}, "nothing is trained again"
    summary = json.loads((folder / "final" / "summary.json").read_text())
    assert summary["deployed"] == {"continue": "grown", "rival": "rival"}[finish]
    place = {"continue": "round-02/train", "rival": "control/rival"}[finish]
    name = "weights.safetensors"
    assert (folder / "final" / name).read_bytes() == (folder / place / name).read_bytes()


def test_a_run_without_a_rival_removes_the_one_of_an_earlier_run(
    undisturbed: tuple[Path, float], recipe: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    command = ("run", recipe, "--out", str(folder), "--no-rival")
    assert finished(growpipe(*command, errors=tmp_path / "err")) == 0
    assert 'no rival: control.rival = "none"' in (tmp_path / "err").read_text()
    assert not (folder / "control" / "rival").exists()
    summary = json.loads((folder / "final" / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["round 0", "round 1", "round 2", "control"]
    assert summary["deployed"] == "grown"
    assert summary["verdict"].endswith("no rival was trained")


def test_a_second_call_skips_every_stage(
    undisturbed: tuple[Path, float], recipe: str, tmp_path: Path
) -> None:
    before = (undisturbed[0] / "final" / "manifest.json").read_bytes()
    assert finished(growpipe("run", recipe, "--out", str(undisturbed[0]), errors=tmp_path / "err")) == 0
    lines = (tmp_path / "err").read_text().splitlines()
    assert len(lines) == 5 + 5 + 3 + 3
    assert all("skipped" in line for line in lines)
    assert (undisturbed[0] / "final" / "manifest.json").read_bytes() == before


def test_a_longer_last_stage_trains_nothing_else_again(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    longer = tmp_path / "longer.toml"
    longer.write_text(RECIPE.replace("final_epochs = 6", "final_epochs = 7"))
    assert finished(growpipe("run", str(longer), "--out", str(folder), errors=tmp_path / "err")) == 0
    lines = (tmp_path / "err").read_text().splitlines()
    again = [line.partition(":")[0] for line in lines if "skipped" not in line]
    last = ["round-02/train", "round-02/export", "round-02/check"]
    assert again == [*last, "control/rival", "control/train", "final"]


def test_fewer_rounds_say_what_they_remove(
    undisturbed: tuple[Path, float], recipe: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    command = ("run", recipe, "--out", str(folder), "--rounds", "1")
    assert finished(growpipe(*command, errors=tmp_path / "err")) == 0
    assert "round-02: of an earlier, longer run, removed" in (tmp_path / "err").read_text().splitlines()
    assert not (folder / "round-02").exists()
    rows = json.loads((folder / "final" / "summary.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["round 0", "round 1", "rival", "control"]


TABLE = """
[budget.table]
limit = 10.0
unit = "mJ"
base = 1.0
terms = [
  { groups = ["features.0.0.weight", "features.1.0.weight"], rate = 0.1 },
  { groups = ["features.2.0.weight"], rate = 0.2 },
  { groups = ["hidden.weight"], widths = [4, 8], costs = [1.0, 3.0] },
]
"""


def test_a_run_spends_a_budget_of_any_cost(tmp_path: Path) -> None:
    recipe = tmp_path / "table.toml"
    free = RECIPE.replace("parameters = 900", "").replace("share = 0.5", "share = 2.0")
    recipe.write_text(free.replace("rounds = 2", "rounds = 5") + TABLE)
    folder = tmp_path / "run"
    assert finished(growpipe("run", str(recipe), "--out", str(folder), errors=tmp_path / "err")) == 0
    summary = json.loads((folder / "final" / "summary.json").read_text())
    assert summary["stopped"] == "the budget is spent"
    *_, grown, rival, _control = summary["rows"]
    for row in (grown, rival):
        first, second, third, hidden = row["widths"]
        layer, curve = 0.1 * first * second + 0.2 * third, 1.0 + 0.5 * (hidden - 4)
        assert row["cost"] == pytest.approx(1.0 + layer + curve)
    assert rival["cost"] <= grown["cost"]
    first, second, *_ = grown["widths"]
    assert grown["cost"] <= 10.0 < grown["cost"] + min(0.1 * first, 0.1 * second, 0.2, 0.5)
    assert "mJ" in (folder / "final" / "summary.md").read_text()
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(recipe.read_text().replace('"hidden.weight"', '"hiden.weight"'))
    again = growpipe("run", str(wrong), "--out", str(tmp_path / "other"), errors=tmp_path / "err")
    assert finished(again) == 2
    assert "'hiden.weight'; see growpipe inspect" in (tmp_path / "err").read_text()
    assert not list((tmp_path / "other").glob("*/*/")), "said before anything is trained"


def test_a_run_spends_a_budget_of_milliseconds(tmp_path: Path) -> None:
    recipe = tmp_path / "milliseconds.toml"
    recipe.write_text(RECIPE.replace("rounds = 2", "rounds = 1") + "milliseconds = 1000\n")
    folder = tmp_path / "run"
    assert finished(growpipe("run", str(recipe), "--out", str(folder), errors=tmp_path / "err")) == 0
    assert "latency: network 1 of 6" in (tmp_path / "err").read_text()
    summary = json.loads((folder / "final" / "summary.json").read_text())
    assert summary["stopped"].startswith("growth is done, round 1 of 1, and some of the budget is left")
    rows = summary["rows"]
    assert 0 < rows[1]["cost"] < 1000
    assert rows[1]["unit"] == "ms"
    assert all(
        width == 16 or width == own for width, own in zip(rows[1]["widths"], (2, 2, 3, 4), strict=True)
    )
    assert 16 in rows[1]["widths"]
    recipe.write_text(recipe.read_text().replace("milliseconds = 1000", "milliseconds = 1e-6"))
    assert finished(growpipe("run", str(recipe), "--out", str(folder), errors=tmp_path / "err")) == 0
    summary = json.loads((folder / "final" / "summary.json").read_text())
    assert summary["stopped"].startswith("the budget is spent: the network takes")
    # What cannot grow still gets the last stage of training, as its control does.
    first, last, control = summary["rows"]
    assert (first["epochs"], last["epochs"], control["epochs"]) == (4, 4 + 6, 4 + 6)
    assert last["widths"] == first["widths"] == control["widths"]
    assert (last["cost"], last["parity"]) == (None, None)
    assert not (folder / "round-00" / "rewrite").exists()
    assert finished(growpipe("run", str(recipe), "--out", str(folder), errors=tmp_path / "err")) == 0
    lines = (tmp_path / "err").read_text().splitlines()
    assert [line for line in lines if "skipped" not in line] == ["no rival: the network has not grown"]


def test_a_run_killed_at_ten_points_ends_with_the_same_artifacts(
    undisturbed: tuple[Path, float], recipe: str, tmp_path: Path
) -> None:
    reference, seconds = undisturbed
    folder = tmp_path / "killed"
    chance = random.Random(7)
    kills = 0
    while kills < 10:
        process = growpipe("run", recipe, "--out", str(folder))
        time.sleep(chance.uniform(0.0, seconds / 5))
        if not process.is_alive():
            break
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert kills == 10, "the run ended before it could be killed ten times"
    assert finished(growpipe("run", recipe, "--out", str(folder))) == 0
    compared = [
        "final/model.onnx",
        "final/growth.onnx",
        "final/weights.safetensors",
        "metrics.jsonl",
        "control/rival/weights.safetensors",
        "control/train/weights.safetensors",
        *(f"round-0{n}/analyse/plan/{name}" for n in (0, 1) for name in ("plan.json", "plan.safetensors")),
    ]
    for name in compared:
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    assert without_timing(folder / "final/summary.json") == without_timing(reference / "final/summary.json")
    assert not list(folder.rglob(".growpipe-*"))
    assert not list(folder.rglob(".progress-*"))


def test_a_run_from_trained_weights_grows_before_it_trains(
    undisturbed: tuple[Path, float], recipe: str, tmp_path: Path
) -> None:
    given = undisturbed[0] / "round-00" / "train" / "weights.safetensors"
    command = ("run", recipe, "--weights", str(given), "--rounds", "1", "--out")
    folder, killed = tmp_path / "warm", tmp_path / "killed"
    assert finished(growpipe(*command, str(folder))) == 0
    first, second, rival, _ = json.loads((folder / "final/summary.json").read_text())["rows"]
    judged = json.loads((undisturbed[0] / "final/summary.json").read_text())["rows"][0]
    assert (first["epochs"], second["epochs"]) == (0, 6)
    assert first["test_score"] == judged["test_score"], "the run begins by judging what it was given"
    assert second["parameters"] > first["parameters"]
    assert rival["training_macs"] <= second["training_macs"]
    plans = [run / "round-00/analyse/plan/plan.safetensors" for run in (folder, undisturbed[0])]
    assert plans[0].read_bytes() == plans[1].read_bytes(), "what is grown is the network that was given"

    chance = random.Random(3)
    for _ in range(4):
        process = growpipe(*command, str(killed))
        time.sleep(chance.uniform(0.0, undisturbed[1] / 6))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert finished(growpipe(*command, str(killed))) == 0
    for name in ("final/model.onnx", "final/weights.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (folder / name).read_bytes(), name

    missing = growpipe("run", recipe, "--weights", "absent.pt", "--out", str(tmp_path / "other"))
    assert finished(missing) == 2


def test_the_stage_commands_do_one_round_together(
    recipe: str, tmp_path: Path, undisturbed: tuple[Path, float]
) -> None:
    folder = tmp_path / "stages"
    assert finished(growpipe("train", str(folder), "--recipe", recipe)) == 0
    for stage in ("export", "analyse", "rewrite", "check-round"):
        assert finished(growpipe(stage, str(folder))) == 0, stage
    for name in ("train/weights.safetensors", "rewrite/child.onnx", "rewrite/weights.safetensors"):
        assert (folder / "round-00" / name).read_bytes() == (
            undisturbed[0] / "round-00" / name
        ).read_bytes(), name
    assert finished(growpipe("report", str(folder), "--json")) == 0


def test_a_stage_before_its_inputs_says_what_to_run_first(recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    assert finished(growpipe("train", str(folder), "--recipe", recipe)) == 0
    assert finished(growpipe("rewrite", str(folder), errors=tmp_path / "err")) == 2
    assert "round 0 has no export stage yet; run first: growpipe export" in (tmp_path / "err").read_text()


def test_a_full_disk_leaves_nothing_half_written(recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    process = growpipe("run", recipe, "--out", str(folder), errors=tmp_path / "err", file_size_limit=6000)
    assert finished(process) == 3
    errors = [line for line in (tmp_path / "err").read_text().splitlines() if line.startswith("growpipe:")]
    assert len(errors) == 1
    assert "too large" in errors[0]
    for stage in folder.glob("*/*/"):
        assert (stage / "manifest.json").is_file(), f"{stage} is half-written"
    assert not list(folder.rglob(".growpipe-*"))


MODEL = """
import torch
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, image):
        flat = image.flatten(1)
        return self.layer(flat if flat.sum() > 0 else -flat)

class Rigid(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, image):
        return self.layer(image.flatten(1))

class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10))
    def forward(self, image):
        return self.body(image.flatten(1))

def no_module():
    return 3

def fails():
    raise RuntimeError("no weights here")
"""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("net.py:Branching", "Branching cannot be exported"),
        ("net.py:Rigid", "no channel group that can split"),
        ("net.py:Normalised", "'body.0.weight' can grow by whole factors alone"),
        ("net.py:no_module", "returned int, not an nn.Module"),
        ("net.py:fails", "RuntimeError: no weights here"),
        ("net.py:absent", "has no 'absent'"),
        ("absent.py:build", "there is no file"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line_and_exit_code_2(
    tmp_path: Path, model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("growpipe.models.digits:build", model))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(recipe), "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not list((tmp_path / "run").glob("*/*/"))


WIDEST = {"features.0.0.weight": 3, "features.1.0.weight": 4, "features.2.0.weight": 4, "hidden.weight": 5}


def test_widths_are_limited_by_group(tmp_path: Path) -> None:
    recipe = tmp_path / "limited.toml"
    widest = ", ".join(f'"{name}" = {width}' for name, width in WIDEST.items())
    limits = f'max_widths = {{ {widest} }}\nmin_widths = {{ "features.1.0.weight" = 4 }}'
    recipe.write_text(RECIPE.replace("samples = 256", f"samples = 256\n{limits}"))
    folder = tmp_path / "run"
    assert finished(growpipe("run", str(recipe), "--out", str(folder), errors=tmp_path / "err")) == 0
    rows = json.loads((folder / "final" / "summary.json").read_text())["rows"]
    assert rows[1]["widths"] == list(WIDEST.values())
    # Nothing may grow further: the last round trains the same network on, and its history goes with it.
    assert [row["name"] for row in rows] == ["round 0", "round 1", "round 2", "rival", "control"]
    assert rows[2]["widths"] == rows[1]["widths"]
    assert all(width <= most for width, most in zip(rows[3]["widths"], WIDEST.values(), strict=True)), (
        "the limits hold for the rival too"
    )
    assert (rows[2]["parity"], rows[2]["latency_ratio"]) == (None, None)
    child, final = (
        {p.key: p.value for p in onnx.load(folder / name).metadata_props if p.key.startswith("growpipe.")}
        for name in ("round-00/rewrite/child.onnx", "round-02/export/growth.onnx")
    )
    assert child == final != {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            '[growth]\nmin_widths = { "features.1.0.wait" = 4 }',
            "name 'features.1.0.wait', but the network has no growable channel group of that name; did you",
        ),
        (
            '[growth]\nmin_widths = { "features.1.0.weight" = 5 }',
            "is 5, and 4 is the most of the first round",
        ),
        (
            '[growth]\nmin_widths = { "hidden.weight" = 6 }\nmax_widths = { "hidden.weight" = 5 }',
            "is 6, and 5 is the most of the first round",
        ),
        ("[budget]\nmacs = 2000", "costs 2,032 MACs, more than the budget of 2,000"),
        ("[budget]\nparameters = 223", "costs 224 parameters, more than the budget of 223"),
        (
            '[budget.table]\nlimit = 1.5\nunit = "mJ"\nterms = [{ groups = ["hidden.weight"], rate = 0.5 }]',
            "costs 2 mJ, more than the budget of 1.5",
        ),
    ],
)
def test_limits_that_cannot_be_are_refused_before_training(
    settings: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    head = RECIPE.partition("[growth]")[0]
    recipe.write_text(head + settings)
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(recipe), "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*/*/"))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "no-such-recipe", "--out", "x"], 2, "there is no recipe 'no-such-recipe'"),
        (["run", "digits"], 2, "Missing option '--out'"),
        (["run", "digits", "--out", "x", "--rounds", "-1"], 2, "--rounds"),
        (["report", "absent"], 2, "absent holds no run; start one with: growpipe run --out absent"),
        (["train", "absent"], 2, "absent holds no run"),
        (["flourish"], 2, "No such command 'flourish'"),
    ],
)
def test_wrong_arguments_are_refused(
    args: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is left behind"
