"""A seeded part of the fuzzer: no mutated file leads to anything but the project's own errors."""

from __future__ import annotations

import onnx
import pytest

from benchmarks.common.forked import forked_models
from benchmarks.graph.fuzz_input import made, run_content, run_input
from benchmarks.graph.fuzz_minimise import shrink
from benchmarks.graph.fuzz_seeds import own_seeds
from growpipe.checks.equivalence import compare_forms
from growpipe.graph_ops.errors import CheckFailed

pytestmark = pytest.mark.slow

FIRST, COUNT = 0, 300


@pytest.fixture(scope="module")
def corpus():
    return own_seeds()


def test_seeds_are_valid(corpus):
    for content in corpus:
        onnx.checker.check_model(content, full_check=True)


def test_an_unmutated_file_goes_through_every_command(corpus, tmp_path):
    entry = run_content(corpus[0], tmp_path / "input")
    assert (entry["outcome"], entry["fault"]) == ("deploy grown", "")


def test_a_number_is_always_the_same_file(corpus):
    assert made(corpus, 0, 17) == made(corpus, 0, 17)
    assert made(corpus, 0, 17) != made(corpus, 0, 18)


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, 100))
def test_mutated_files_lead_to_no_fault(corpus, tmp_path, first):
    with forked_models():
        entries = [run_input(corpus, 1, n, tmp_path / str(n)) for n in range(first, first + 100)]
    assert [entry for entry in entries if entry["fault"]] == []
    assert len({entry["outcome"] for entry in entries}) >= 4  # they get deep into the commands


def test_a_broken_command_is_a_fault(corpus, tmp_path, monkeypatch):
    def broken(arguments):
        raise KeyError("inside")

    monkeypatch.setattr("benchmarks.graph.fuzz_input.growpipe_main", broken)
    entry = run_content(corpus[0], tmp_path / "input")
    assert entry["outcome"] == "fault"
    assert "KeyError" in entry["fault"]


def test_a_file_opened_outside_is_a_fault(corpus, tmp_path, monkeypatch):
    def curious(arguments):
        (tmp_path / "outside").write_text("x")
        raise SystemExit(0)

    monkeypatch.setattr("benchmarks.graph.fuzz_input.growpipe_main", curious)
    entry = run_content(corpus[0], tmp_path / "input")
    assert entry["fault"] == f"outside: open {tmp_path / 'outside'}"


def test_a_hang_is_a_fault(corpus, tmp_path, monkeypatch):
    def endless(arguments):
        while True:
            pass

    monkeypatch.setattr("benchmarks.graph.fuzz_input.growpipe_main", endless)
    monkeypatch.setattr("benchmarks.common.watch.SECONDS", 0.2)
    assert run_content(corpus[0], tmp_path / "input")["fault"].startswith("hang")


def test_a_forked_child_proves_as_a_started_one(corpus, tmp_path):
    (tmp_path / "model.onnx").write_bytes(corpus[0])
    other = onnx.ModelProto.FromString(corpus[0])
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    onnx.save(other, tmp_path / "other.onnx")

    def compared():
        same = compare_forms(tmp_path / "model.onnx", tmp_path / "model.onnx", "it")
        with pytest.raises(CheckFailed) as caught:
            compare_forms(tmp_path / "model.onnx", tmp_path / "other.onnx", "it")
        return same, str(caught.value)

    with forked_models():
        forked = compared()
    assert forked[0].verified
    assert forked == compared()


def test_a_file_is_shrunk_to_what_fails(corpus):
    def fails(content):
        return any(node.op_type == "Softmax" for node in onnx.ModelProto.FromString(content).graph.node)

    content = next(c for c in corpus if fails(c))
    smallest = onnx.ModelProto.FromString(shrink(content, fails))
    assert [node.op_type for node in smallest.graph.node] == ["Softmax"]
    assert not smallest.graph.initializer
