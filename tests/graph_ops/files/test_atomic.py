"""Writing: whole or not at all, and never over files of other programs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from growpipe.graph_ops.errors import UsageError
from growpipe.graph_ops.files import atomic
from growpipe.graph_ops.files.atomic import (
    check_file_target,
    check_folder_target,
    publish_file,
    publish_folder,
    sweep,
    write_text,
)
from growpipe.graph_ops.files.reading import hash_file


def owned(folder: Path) -> Collection[str]:
    return ("ours.txt", "more.txt") if (folder / "ours.txt").is_file() else ()


def publish(target: Path, text: str = "new") -> None:
    with publish_folder(target, owned) as folder:
        (folder / "ours.txt").write_text(text)


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content; None for a folder or a link."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def umask() -> Iterator[int]:
    mask = 0o027
    before = os.umask(mask)
    yield mask
    os.umask(before)


def test_files_and_folders_are_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "zwölf")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "zwölf"
    assert hash_file(tmp_path / "a.txt") == hashlib.sha256("zwölf".encode()).hexdigest()
    publish(tmp_path / "folder", "one")
    publish(tmp_path / "folder", "two")
    assert listing(tmp_path / "folder") == {"ours.txt": b"two"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "a.txt", "")
    with publish_file(tmp_path / "b.txt") as staged:
        staged.touch(mode=0o600)  # as libraries do that write tensors
    with publish_folder(tmp_path / "folder") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "c.txt").touch(mode=0o600)
    for file in ("a.txt", "b.txt", "folder/deep/c.txt"):
        assert (tmp_path / file).stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    publish(tmp_path / "folder", "one")
    before = listing(tmp_path)

    def fail_in_file() -> None:
        with publish_file(tmp_path / "a.txt") as staged:
            staged.write_text("half")
            raise OSError(28, "No space left on device")

    def fail_in_folder() -> None:
        with publish_folder(tmp_path / "folder", owned) as folder:
            (folder / "ours.txt").write_text("half")
            raise OSError(28, "No space left on device")

    for fail in (fail_in_file, fail_in_folder):
        with pytest.raises(OSError, match="No space left"):
            fail()
    assert listing(tmp_path) == before


def make_foreign(folder: Path, kind: str) -> None:
    match kind:
        case "file":
            (folder / "README.md").write_text("mine")
        case "hidden folder":
            (folder / ".git").mkdir()
            (folder / ".git" / "HEAD").write_text("ref")
        case "own name, but a folder":
            (folder / "more.txt").mkdir()
        case "own name, but a link":
            (folder / "more.txt").symlink_to(folder.parent / "elsewhere.txt")
        case "own name, but a pipe":
            os.mkfifo(folder / "more.txt")
        case "nothing of growpipe's":
            (folder / "ours.txt").rename(folder / "theirs.txt")


@pytest.mark.parametrize(
    "kind",
    [
        "file",
        "hidden folder",
        "own name, but a folder",
        "own name, but a link",
        "own name, but a pipe",
        "nothing of growpipe's",
    ],
)
def test_a_folder_with_files_of_others_is_never_replaced(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere.txt").write_text("mine")
    publish(tmp_path / "folder")
    make_foreign(tmp_path / "folder", kind)
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="holds files that growpipe did not write there"):
        publish(tmp_path / "folder", "two")
    assert listing(tmp_path) == before


def test_a_file_that_turns_up_while_a_folder_is_written_is_kept(tmp_path: Path) -> None:
    publish(tmp_path / "folder", "one")

    def write_slowly() -> None:
        with publish_folder(tmp_path / "folder", owned) as folder:
            (folder / "ours.txt").write_text("two")
            (tmp_path / "folder" / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match=r"notes\.txt"):
        write_slowly()
    assert listing(tmp_path / "folder") == {"ours.txt": b"one", "notes.txt": b"mine"}


def test_folders_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "file").touch()
    for name, message in {"link": "is a link", "dangling": "is a link", "file": "is a file"}.items():
        with pytest.raises(UsageError, match=message):
            check_folder_target(tmp_path / name, owned)
    with pytest.raises(UsageError, match="which is read"):
        check_folder_target(tmp_path / "folder", owned, inputs=[tmp_path / "link" / "ours.txt"])
    monkeypatch.chdir(tmp_path / "folder")
    for here in (".", tmp_path / "folder", tmp_path):
        with pytest.raises(UsageError, match="working folder"):
            check_folder_target(here, owned)
    assert check_folder_target("deeper", owned) == tmp_path / "folder" / "deeper"


def test_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target.txt")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "link": "is a link",
        "folder": "is a folder",
        "pipe": "not a regular file",
        "absent/a.txt": "no folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            write_text(tmp_path / name, "new")
    assert check_file_target(tmp_path / "new.txt") == tmp_path / "new.txt"
    assert (tmp_path / "target.txt").read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from growpipe.graph_ops.files import atomic

target, moment = Path(sys.argv[1]), sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "half replaced":
    rename = Path.rename
    def rename_old_then_die(path, to):
        if path.name == "new":
            die()
        return rename(path, to)
    Path.rename = rename_old_then_die
with atomic.publish_folder(target, lambda folder: ("ours.txt",)) as folder:
    (folder / "ours.txt").write_text("half")
    if moment == "half written":
        die()
"""


@pytest.mark.parametrize("moment", ["half written", "half replaced"])
def test_what_a_killed_writer_left_is_swept_and_the_old_folder_is_back(tmp_path: Path, moment: str) -> None:
    publish(tmp_path / "folder", "one")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "folder", moment], check=False)
    assert done.returncode == -9
    assert list(tmp_path.glob(".growpipe-*"))
    sweep(tmp_path)
    assert listing(tmp_path) == {"folder": None, "folder/ours.txt": b"one"}


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "folder") as folder:
        (folder / "a.txt").write_text("one")
        write_text(tmp_path / "other.txt", "two")  # sweeps the same place
        sweep(tmp_path)
    assert listing(tmp_path) == {"folder": None, "folder/a.txt": b"one", "other.txt": b"two"}


def test_links_and_files_that_only_look_like_leftovers_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / f"{atomic.STAGING}link").symlink_to(tmp_path / "kept")
    (tmp_path / f"{atomic.STAGING}file").write_text("mine")
    before = listing(tmp_path)
    sweep(tmp_path)
    assert listing(tmp_path) == before
