"""The border for reading: regular files of a sane size alone, and one line for whatever is wrong."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from growpipe.graph_ops.errors import GrowpipeError, MissingEnvironment, UnsafeModel, UsageError
from growpipe.graph_ops.files.documents import parse_json, parse_toml, read_json, read_toml
from growpipe.graph_ops.files.reading import (
    LimitedReader,
    MissingFile,
    hash_file,
    limited,
    one_line,
    opened,
    read_bytes,
    read_text,
    reading,
)


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("ä".encode())
    assert read_bytes(tmp_path / "a", "the file", most=2) == "ä".encode()
    assert read_text(tmp_path / "a", "the file", most=2) == "ä"
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link", "the file", most=2) == "ä"  # the user's own link
    assert hash_file(tmp_path / "a") == hashlib.sha256("ä".encode()).hexdigest()


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
        (lambda path: path.symlink_to("/dev/tty"), "not a regular file|No such device"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.write_bytes(b"12345"), "it has 5 bytes; at most 4 are read"),
        (lambda path: path.write_bytes(b"\xff"), "it is not UTF-8 text"),
        (lambda path: None, "No such file"),
    ],
)
def test_nothing_else_is(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(UsageError, match=f"^the plan {tmp_path}/x cannot be read: .*({message})"):
        read_text(tmp_path / "x", "the plan", most=4)


def test_a_file_that_tells_no_size_is_bounded() -> None:
    with pytest.raises(UsageError, match="more than 10 bytes"):
        read_bytes("/proc/self/maps", "the file", most=10)


def test_inside_a_folder_no_link_is_followed(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (run / "round", outside):
        folder.mkdir(parents=True)
        (folder / "a.json").write_text("1")
    (run / "b.json").symlink_to(outside / "a.json")
    (run / "c.json").symlink_to("round/a.json")
    (run / "other").symlink_to(outside)
    (tmp_path / "alias").symlink_to(run)
    assert read_json(run / "round" / "a.json", "the file", inside=run) == 1
    assert read_json(tmp_path / "alias" / "round" / "a.json", "the file", inside=tmp_path / "alias") == 1
    for name in ("b.json", "c.json", "other/a.json"):
        with pytest.raises(UsageError, match="is a symbolic link, which is not followed there"):
            read_json(run / name, "the file", inside=run)
    with pytest.raises(UsageError, match="leads out of the folder"):
        read_json(run / ".." / "outside" / "a.json", "the file", inside=run)
    with pytest.raises(MissingFile):
        read_json(run / "round" / "a.json" / "b.json", "the file", inside=run)


class Odd(Exception):
    def __str__(self) -> str:
        return "first\nsecond \x1b[31m::error::"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Odd(), "first second \N{REPLACEMENT CHARACTER}[31m::error::"),
        (KeyError("data"), "it lacks 'data'"),
        (RecursionError("maximum"), "it is nested too deeply"),
        (MemoryError(), "it needs more memory than there is"),
        (AssertionError(), "AssertionError"),
        (ValueError("x" * 1000), "x" * 199 + "…"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_whatever_a_library_raises_becomes_one_line(fault: Exception, message: str) -> None:
    with pytest.raises(UsageError) as told, reading("the mesh", "a.off"):
        raise fault
    assert str(told.value) == f"the mesh a.off cannot be read: {message}"
    with pytest.raises(UnsafeModel), reading("the model", "a.onnx", error=UnsafeModel):
        raise fault


def test_an_error_of_ours_keeps_its_class_and_gets_the_files_name() -> None:
    with (
        pytest.raises(MissingEnvironment, match=r"^the file a cannot be read: h5py is missing$"),
        reading("the file", "a"),
    ):
        raise MissingEnvironment("h5py is missing")
    with pytest.raises(UsageError, match=r"^a is odd$"), reading("the file", "a"):
        raise UsageError("a is odd")
    with pytest.raises(KeyboardInterrupt), reading("the file", "a"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "it is wrong at 'a\nb\x1b[31m'", "a.json is wrong: " + "y" * 10**6]
)
def test_a_message_that_shows_what_the_file_holds_is_one_line_of_bounded_length(text: str) -> None:
    with pytest.raises(UsageError) as told, reading("the plan", "a.json"):
        raise UsageError(text)
    line = str(told.value)
    assert line.startswith(("the plan a.json cannot be read: ", "a.json is wrong: "))
    assert len(line) < 1100
    assert line.isprintable()


DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * DEEP, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("9" * 5000, "an integer of 5000 digits"),
        ("18446744073709551616", "an integer of 65 bits"),
        ("1." + "0" * 500, "a number of 502 digits"),
        (r'{"a": "\ud800"}', "not Unicode"),
        (r'{"\udfff": 1}', "not Unicode"),
        ("{", "it is not JSON: Expecting property name"),
        ("", "it is not JSON"),
        ("1 2", "it is not JSON: Extra data"),
    ],
)
def test_json_that_would_trouble_others_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match=f"^the plan .*a.json cannot be read: .*{message}") as told:
        read_json(tmp_path / "a.json", "the plan")
    assert len(str(told.value).splitlines()) == 1


def test_ordinary_json_is_read_as_it_is() -> None:
    text = '{"a": [1, 1.5, -9223372036854775808, 18446744073709551615, null, true, "ä \U0001f600"], "b": NaN}'
    assert json.dumps(parse_json(text)) == json.dumps(json.loads(text))
    parse_json("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * DEEP, "nested more than 64 deep"),
        ("a = " + "{b = " * 70 + "1" + "}" * 70, "nested more than 64 deep"),
        (".".join("a" * 100) + " = 1", "a key of more than 64 parts"),
        ("[" + " . ".join(["'a'"] * 100) + "]", "a key of more than 64 parts"),
        ("a = " + "9" * 5000, "it is not TOML"),
        ("a = 0x" + "f" * 5000, "an integer of 20000 bits"),
        ("a = 1999-13-01", "it is not TOML"),
        ("a = 1." + "0" * 500, "a number of 502 digits"),
        ("a", "it is not TOML: Expected '='"),
    ],
)
def test_toml_that_would_trouble_others_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UsageError, match=f"^the policy .*a.toml cannot be read: .*{message}") as told:
        read_toml(tmp_path / "a.toml", "the policy")
    assert len(str(told.value).splitlines()) == 1


def test_ordinary_toml_is_read_as_it_is() -> None:
    text = 'a.b."c.d" = [0.1, 1_000, 0xff, 1e3]\n[[t.u]]\nday = 2026-01-02\n'
    assert parse_toml(text)["a"] == {"b": {"c.d": [0.1, 1000, 255, 1e3]}}


def test_a_reader_for_libraries_gives_no_more_than_its_limits(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with opened(tmp_path / "a", most=100) as file:
        reader = LimitedReader(file, total=100)
        assert reader.read() == bytes(range(100))
        assert reader.read() == b""
        file.seek(0)
        reader = LimitedReader(file, total=60)
        assert reader.read(60) == bytes(range(60))
        with pytest.raises(UsageError, match="unpacks to more than 60 bytes"):
            reader.read(1)
        reader = LimitedReader(file, once=60)
        reader.seek(0)
        assert reader.read(60) == bytes(range(60))
        with pytest.raises(UsageError, match="61 bytes at once"):
            reader.read(61)
        reader.seek(0)
        with pytest.raises(UsageError, match="more than 60 bytes"):
            reader.read()


def test_one_line_keeps_what_can_be_printed() -> None:
    assert one_line("a\r\n\tb\u2028c ä") == "a b c ä"
    assert one_line(GrowpipeError("")) == ""
    assert len(one_line("a" * 10**6)) == 200


# What opens a file, or parses what is in one. Methods count whatever they are called on.
OPENERS = set(
    [
        "open",
        "io.open",
        "os.open",
        "os.fdopen",
        "np.load",
        "np.fromfile",
        "np.memmap",
        "np.loadtxt",
        "json.load",
        "json.loads",
        "tomllib.load",
        "tomllib.loads",
        "zipfile.ZipFile",
        "tarfile.open",
        "gzip.open",
        "gzip.GzipFile",
        "h5py.File",
        "safe_open",
        "load_file",
        "torch.load",
        "pickle.load",
        "pickle.loads",
        "pillow.open",
        "mmap.mmap",
        ".read_text",
        ".read_bytes",
        ".open",
    ]
)

# Whoever opens a file in another way than the border has to say why here.
ELSEWHERE = {
    "graph_ops/files/reading.py": "the border",
    "graph_ops/files/documents.py": "parses what the border has read",
    "graph_ops/files/arrays.py": "within the border",
    "graph_ops/files/tensors.py": "within the border",
    "graph_ops/files/atomic.py": "opens folders and what it has written",
    "graph_ops/files/load_save.py": "the border for models, with limits of its own",
    "graph_ops/files/protobuf_size.py": "maps what load_save has opened",
    "graph_ops/onnx_tools/process_main.py": "its own /proc",
    "pipeline/analyser/curvature/heap.py": "its own /proc",
    "pipeline/checks/child/messages.py": "messages of our own child",
    "pipeline/checks/child/operations.py": "its own /proc, and a profile that it has just written",
    "pipeline/tracking/trackers.py": "a picture that the border has opened",
    "pipeline/commands/check.py": "appends to the step summary of the workflow",
    "pipeline/data/cifar.py": "within the border",
    "pipeline/data/hdf5.py": "the answer of our own child",
    "pipeline/data/hdf5_main.py": "standard input, which the border has opened",
    "pipeline/data/idx.py": "within the border",
    "pipeline/data/images.py": "within the border",
    "pipeline/environment.py": "growpipe's own sources",
    "pipeline/parallel/distributed.py": "messages of our own processes",
    "pipeline/run/locate.py": "recipes that ship with growpipe",
    "pipeline/run/lock.py": "the lock, which is never read",
    "pipeline/run/tracked.py": "appends to what it has written",
    "pipeline/run/picture.py": "lines that the border has read and parsed",
    "pipeline/torch_module/state_file.py": "within the border",
    "pipeline/torch_module/weights.py": "weights, within the border; never unpickled (weights_only)",
    "pipeline/user_code.py": "the user's own code, which runs anyway",
}


def called(node: ast.Call) -> str:
    """``json.loads`` for that function; ``.read_text`` for a method of whatever it is."""
    match node.func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(attr=name, value=ast.Name(id=module)) if f"{module}.{name}" in OPENERS:
            return f"{module}.{name}"
        case ast.Attribute(attr=name, value=value):
            is_run = isinstance(value, ast.Name) and value.id == "Run"  # Run.open opens a run
            return "" if is_run else f".{name}"
    return ""


def test_no_other_module_opens_a_file() -> None:
    root = Path(__file__).parents[3]
    found = set()
    for folder in ("graph_ops", "pipeline", "models"):
        for path in (root / folder).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            if not OPENERS.isdisjoint(map(called, calls)):
                found.add(path.relative_to(root).as_posix())
    assert found - ELSEWHERE.keys() == set()
    assert ELSEWHERE.keys() - found == set(), "these no longer open anything"


def test_a_library_that_reads_on_at_the_end_of_a_file_is_stopped(tmp_path: Path) -> None:
    """Streams of ``tarfile`` skip as many blocks as a header says, whether they are there or not."""
    entry = tarfile.TarInfo("a")
    entry.size = 2**60
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT))
    with (
        opened(tmp_path / "a.tar", most=2**20) as file,
        tarfile.open(fileobj=limited(file, total=2**20), mode="r|") as archive,
        pytest.raises(UsageError, match="ends before"),
    ):
        archive.getnames()
