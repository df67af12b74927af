"""Text from files and paths is harmless in every output form."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.torture.formats import made_run
from growpipe.cli import main
from growpipe.printing import (
    for_annotation,
    for_log,
    for_markdown,
    for_markdown_code,
    for_xml,
    json_text,
    one_line,
)
from tests.helpers.good_models import cnn, save

HOSTILE = [
    "a\x1b[31mred\x1b]0;title\x07",
    "a\n::error::owned",
    "::set-output name=x::y",
    "  ::add-mask::x",
    "##[command]rm -rf /",
    "x ##[error]y",
    "a\u202eb\u2066c",
    "a\r\n::warning::b\x85c\u2028::error::d",
    "\x9b2J",
]
MARKUP = [
    "![x](http://evil.example/p.png)",
    "[a](javascript:x)",
    "<img src=x>",
    "a|b",
    "`x`",
    "@team",
    "www.evil.example",
]


def is_harmless(text: str) -> bool:
    lines = text.splitlines()
    return (
        all(c.isprintable() or c in "\n\u200b" for c in text)
        and not any(line.lstrip().startswith("::") for line in lines)
        and "##[" not in text
    )


@pytest.mark.parametrize("text", [*HOSTILE, *MARKUP])
def test_every_form_is_harmless(text: str) -> None:
    for form in (one_line, for_log, for_annotation, for_markdown, for_markdown_code, for_xml):
        assert is_harmless(form(text)), form
    assert "\n" not in one_line(text)
    assert is_harmless(json_text({text: [text]}))


def test_json_says_in_words_what_it_has_no_number_for() -> None:
    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = json_text({"a": [float("inf"), {"b": (float("nan"), -float("inf"), 1.5, 2, None, True)}]})
    assert json.loads(text, parse_constant=never) == {
        "a": ["inf", {"b": ["nan", "-inf", 1.5, 2, None, True]}]
    }
    assert json.loads(json_text({text: [text]})) == {text: [text]}
    assert (
        ET.fromstring(f"<a>{for_xml(text).replace('&', '&amp;').replace('<', '&lt;')}</a>").text is not None
    )


@pytest.mark.parametrize("text", MARKUP)
def test_markdown_is_neither_rendered_nor_linked(text: str) -> None:
    for form in (for_markdown, for_markdown_code):
        shown = form(text).removeprefix("<code>").removesuffix("</code>")
        assert not set(shown) & set("<>|`[]")
        for mark in ("http://", "@team", "www."):
            assert mark not in shown


def test_an_annotation_stays_within_its_command() -> None:
    assert for_annotation("a:b,c\nd%", is_property=True) == "a%3Ab%2Cc%0Ad%25"
    assert for_annotation("a::b\nc") == "a::b%0Ac"


def test_plain_text_stays_as_it_is() -> None:
    text = "ε = 0.1, 'conv1/weight:0' [1, 3] → 100 % ✓"
    assert one_line(text) == for_log(text) == text


def hostile_model(folder: Path) -> Path:
    model = cnn()
    names = {"features.0.weight": "w\x1b[31m\n::error::owned", "features.1.bias": "##[command]x"}
    model.graph.name = "g\n::error::graph"
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name.replace("_", "."), names.get(name, name))
    del model.graph.value_info[:]
    folder.mkdir(exist_ok=True)
    path = folder / "m\x1b[2J\n::error::path.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("command", ["inspect", "plan", "grow", "deploy", "check", "diff"])
@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_no_command_prints_what_a_terminal_or_a_runner_obeys(
    command: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "github" and command != "check":
        pytest.skip("a form of check alone")
    path = hostile_model(tmp_path / "in")
    out = tmp_path / "out\n::error::out"
    arguments = {
        "inspect": [path],
        "plan": [path, "--random", "--growth", "0.3", "-o", out],
        "grow": [path, "--plan", tmp_path / "plan", "-o", out.with_suffix(".onnx")],
        "deploy": [path, "-o", out],
        "check": [path, "--only", "structure", "--only", "safety", "--profile", "release"],
        "diff": [path, tmp_path / "model.onnx"],
    }[command]
    if command == "diff":
        save(cnn(), tmp_path)
    if command == "grow":
        run("plan", path, "--random", "--growth", "0.3", "-o", tmp_path / "plan")
        capsys.readouterr()
    extra = {"text": [], "json": ["--json"], "github": ["--format", "github"]}[form]
    run(command, *arguments, *extra)
    printed = capsys.readouterr()
    assert printed.out + printed.err
    if form == "github":  # the commands that are our own
        own = [line for line in printed.out.splitlines() if line.startswith("::")]
        assert all(line.startswith(("::error file=", "::warning file=")) for line in own)
        printed_lines = [line for line in printed.out.splitlines() if line not in own]
        assert is_harmless("\n".join(printed_lines))
        assert not any("\x1b" in line or "##[" in line for line in own)
        return
    assert is_harmless(printed.out), printed.out
    assert is_harmless(printed.err), printed.err


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_report_prints_nothing_of_that_kind_either(
    form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_run(tmp_path / "run\n::error::run").path
    for file in folder.rglob("*.json"):
        document = json.loads(file.read_text())
        file.write_text(json.dumps(_hostile(document)))
    run("report", folder, *form)
    printed = capsys.readouterr()
    assert "mine" in printed.out
    assert is_harmless(printed.out), printed.out
    assert is_harmless(printed.err), printed.err


def _hostile(document: Any) -> Any:
    """Every name of a task, and every text that nothing is looked up by, made hostile."""
    match document:
        case dict():
            return {
                key: f"{value}\x1b[2J\n::error::x ##[command]y"
                if key in ("name", "verdict")
                else _hostile(value)
                for key, value in document.items()
            }
        case list():
            return [_hostile(value) for value in document]
    return document


def run(command: str, *arguments: object) -> None:
    with pytest.raises(SystemExit):
        main([command, *map(str, arguments)])


def test_an_error_about_a_hostile_path_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("inspect", tmp_path / "no\x1b[2J\n::error::such.onnx")
    assert is_harmless(capsys.readouterr().err)
    save(cnn(), tmp_path)
    run("inspect", tmp_path / "model.onnx", "--no\x1b[2Jsuch")
    assert is_harmless(capsys.readouterr().err)
