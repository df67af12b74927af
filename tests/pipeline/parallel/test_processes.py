"""Two processes under gloo give one plan, that of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.two_processes import OPTIONS, plan_facts

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[3]


def test_two_processes_give_the_plan_of_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.two_processes"],
            cwd=ROOT, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    one_process = {name: plan_facts(options) for name, options in OPTIONS.items()}
    answers = []
    for rank in ranks:
        output, errors = rank.communicate(timeout=240)
        assert rank.returncode == 0, errors[-2000:]
        answers.append(json.loads(output))
    assert answers[0] == answers[1]
    for name, alone in one_process.items():
        together = answers[0][name]
        assert together["source"] == alone["source"]
        assert together["samples"] == alone["samples"] == 90  # a quarter of 120 is held out
        assert together["epsilon"] == pytest.approx(alone["epsilon"])
        assert together["predicted"] == pytest.approx(alone["predicted"], rel=1e-4)
        assert together["realised"] == pytest.approx(alone["realised"], abs=1e-5)
        for group, ends in alone["ends"].items():
            assert together["ends"][group] == pytest.approx(ends, rel=1e-5)
    for facts in (one_process, answers[0]):
        # The second set takes a block over all of it and one over the first set, in every group.
        assert [s["samples"] for s in facts["small micro-batches"]["sets"]] == [20, 90]
        assert facts["small micro-batches"]["sets"][1]["products_per_group"] == 4
