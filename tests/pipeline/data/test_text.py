"""Text byte by byte: windows, what is held out, and files that cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from growpipe.data.text import loaders, python_topics
from growpipe.graph_ops.errors import MissingEnvironment, UsageError


def test_the_target_of_a_byte_is_the_next_one(tmp_path: Path) -> None:
    content = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ".encode() * 3
    (tmp_path / "a.txt").write_bytes(content)
    parts = loaders(4, 0, str(tmp_path / "a.txt"), length=10, held_out=0.1)
    ((test, after),) = parts.test
    ((validation, _),) = parts.validation
    windows = [content[start : start + 10] for start in range(0, len(content) - 10, 10)]
    assert [bytes(row) for row in test.tolist()] == windows[-2:]
    assert [bytes(row) for row in validation.tolist()] == windows[-4:-2]
    assert torch.equal(after[:, :-1], test[:, 1:])
    assert after[0, -1] == test[1, 0]
    assert test.dtype == after.dtype == torch.int64
    torch.manual_seed(0)
    seen = [bytes(row) for texts, _ in parts.train for row in texts.tolist()]
    assert len(seen) == 4 * ((len(windows) - 4) // 4)
    assert set(seen) <= set(windows[:-4])


def test_the_default_text_comes_with_python() -> None:
    text = python_topics()
    assert len(text) > 100_000
    assert 'The "assert" statement' in text
    parts = loaders(32, 0, epoch_samples=64)
    assert [texts.shape for texts, _ in parts.train] == [(32, 64)] * 2


def test_a_python_without_it_asks_for_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(MissingEnvironment, match=r"give data_options\.path"):
        loaders(4, 0)


def test_texts_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    for content, windows in (("", 0), ("x" * 128, 1), ("x" * 129, 2)):
        short.write_text(content)
        with pytest.raises(
            UsageError, match=f"has {windows} windows of 64 bytes, too few to hold out 40% twice"
        ):
            loaders(4, 0, str(short), held_out=0.4)
    with pytest.raises(UsageError, match=r"the text .*absent cannot be read"):
        loaders(4, 0, str(tmp_path / "absent"))
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(UsageError, match="at most 67,108,864 are read"):
        loaders(4, 0, str(large))
    with pytest.raises(UsageError, match="held_out is above 0 and below"):
        loaders(4, 0, str(short), held_out=0.5)
