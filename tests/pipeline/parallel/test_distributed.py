"""Several processes under torchrun: the steps of one process, one plan, one writer, one line on an error."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from growpipe.cli import main
from growpipe.graph_ops.errors import MissingEnvironment
from growpipe.graph_ops.plan.split_plan import SplitPlan
from growpipe.parallel.distributed import data_parallel
from growpipe.parallel.processes import Processes
from tests.helpers.two_trainers import alone, print_facts, refusal

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


# Children start from a server that has everything imported.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["growpipe.run.loop", "growpipe.commands.run", "growpipe.analyser", "tests.helpers.two_trainers"]
)


def together(
    folder: Path, call: Callable[..., None], *args: str, **environment: str
) -> list[tuple[int | None, str, str]]:
    """Two processes as torchrun starts them: exit code, stdout and stderr of each."""
    # As under torchrun, the store is held by the one that starts them, and outlives any of them.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    streams = [[folder / f"{name}-{rank}" for name in ("out", "err")] for rank in range(2)]
    children = [
        _SERVER.Process(target=_child, args=(call, args, {**environment, "RANK": str(rank)}, streams[rank]))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(200)
    return [
        (child.exitcode, out.read_text(), err.read_text())
        for child, (out, err) in zip(children, streams, strict=True)
    ]


def _child(
    call: Callable[..., None], args: tuple[str, ...], environment: dict[str, str], streams: list[Path]
) -> None:
    for number, path in enumerate(streams, start=1):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(environment, LOCAL_RANK=environment["RANK"])
    torch.set_num_threads(1)
    call(*args)


def command_line(*args: str) -> None:
    main(list(args))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    answers = []
    for code, output, errors in together(folder, print_facts, str(folder / "progress")):
        assert code == 0, errors[-2000:]
        answers.append(json.loads(output))
    return answers


def test_two_processes_take_the_steps_of_one(ranks: list[dict[str, Any]]) -> None:
    for name, expected in alone()["together"].items():
        for answer in ranks:
            np.testing.assert_allclose(
                answer["together"][name]["weights"], expected["weights"], rtol=0, atol=1e-5, err_msg=name
            )
            np.testing.assert_allclose(
                answer["together"][name]["losses"], expected["losses"], rtol=1e-5, err_msg=name
            )
    assert ranks[0]["together"] == ranks[1]["together"], "every rank has the same bits"


def test_batch_norm_and_dropout_leave_every_rank_with_the_same_network(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["normalised"] == ranks[1]["normalised"]
    assert ranks[0]["held_out"] == ranks[1]["held_out"]
    assert np.isfinite(ranks[0]["held_out"]).all()


def test_a_training_that_is_broken_off_goes_on_to_the_same_weights(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["resumed"] == ranks[0]["normalised"]
    assert ranks[1]["resumed"] == ranks[1]["normalised"]


def test_the_pieces_make_up_the_batches(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks[0]["samples"], ranks[1]["samples"]
    assert [a + b for a, b in zip(first, second, strict=True)] == [9] * 7 + [1]
    assert first[:7] == [4] * 7
    assert first[7] == 0.5, "a batch too small to be cut is done by both"


def test_a_parameter_without_a_gradient_is_told_in_one_line(ranks: list[dict[str, Any]]) -> None:
    for answer in ranks:
        assert "a parameter of the network gets no gradient" in answer["refusal"]
        assert "\n" not in answer["refusal"]
    assert refusal(Processes()) is None, "one process trains it"


MODEL = """
import os
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from growpipe.data import Loaders

def build():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

def loaders(batch_size, seed):
    inputs = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())
    return Loaders(DataLoader(data, batch_size, shuffle=True), DataLoader(data, 96), DataLoader(data, 96))

def loss(output, target):
    value = nn.functional.cross_entropy(output, target)
    if os.environ.get("RANK", "none") == os.environ.get("FAILING"):
        if os.environ["HOW"] == "killed":
            os.kill(os.getpid(), 9)
        value = value * float("nan")
    return value
"""

RECIPE = """
name = "together"
model = "net.py:build"
data = "net.py:loaders"
loss = "net.py:loss"
[train]
optimizer = "sgd"
learning_rate = 0.05
batch_size = 16
epochs = 3
final_epochs = 3
threads = 1
[growth]
rounds = 1
samples = 96
finish = "continue"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def test_torchrun_grows_the_network_of_one_process(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["run", str(recipe), "--device", "cpu", "--out"]
    done = subprocess.run(
        [*launcher, "-m", "growpipe", *command, str(tmp_path / "two")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("the deployable model is") == 1
    assert done.stderr.count("round-00/train") == 1

    with pytest.raises(SystemExit) as stopped:
        main([*command, str(tmp_path / "one")])
    assert stopped.value.code == 0
    plans = [SplitPlan.load(tmp_path / run / "round-00/analyse/plan") for run in ("one", "two")]
    assert [g.source.tolist() for g in plans[0].groups] == [g.source.tolist() for g in plans[1].groups]
    assert plans[1].epsilon == pytest.approx(plans[0].epsilon)
    for name in ("round-00/rewrite/optimizer.safetensors", "final/weights.safetensors"):
        one, two = (load_file(tmp_path / run / name) for run in ("one", "two"))
        assert one.keys() == two.keys()
        for key, expected in one.items():
            np.testing.assert_allclose(two[key], expected, rtol=0, atol=1e-4, err_msg=f"{name}: {key}")

    # What two have done, one has no need to do again.
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*command, str(tmp_path / "two")])
    assert stopped.value.code == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all("skipped" in line for line in lines)


@pytest.mark.parametrize(("failing", "how"), [("0", "nan"), ("1", "killed")])
def test_an_error_in_one_process_ends_all_with_one_line(
    recipe: Path, tmp_path: Path, failing: str, how: str
) -> None:
    command = ["run", str(recipe), "--device", "cpu", "--out", str(tmp_path / "run")]
    results = together(tmp_path, command_line, *command, FAILING=failing, HOW=how)
    codes = [code for code, _, _ in results]
    lines = [line for _, _, errors in results for line in errors.splitlines() if "growpipe: " in line]
    assert not any("Traceback" in errors for _, _, errors in results)
    assert len(lines) == 1, lines
    if how == "killed":
        assert codes == [3, -9]
        assert "another process was lost" in lines[0]
    else:
        assert codes == [2, 2]
        assert lines[0].endswith(f"(on rank {failing} of 2)")
        assert "the loss is nan" in lines[0]
    assert not list((tmp_path / "run").rglob(".growpipe-*/weights.safetensors"))


def test_errors_that_all_processes_meet_are_told_once(tmp_path: Path) -> None:
    results = together(tmp_path, command_line, "run", "no-such-recipe", "--out", str(tmp_path / "run"))
    assert [code for code, _, _ in results] == [2, 2]
    assert "there is no recipe" in results[0][2]
    assert results[1][2] == ""


def test_batch_norm_is_synchronised_on_cuda_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(MissingEnvironment, match=r"sync_batch_norm needs CUDA"):
        data_parallel(model, Processes(0, 2), sync_batch_norm=True)
    assert data_parallel(model, Processes(), sync_batch_norm=True) is model
    assert torch.distributed.is_initialized() is False
