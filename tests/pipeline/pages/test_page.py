"""Pages hold what they were given, obey nothing of it, and stay small."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from growpipe.graph_ops.edit.difference import difference_of
from growpipe.graph_ops.edit.grow_graph import grow_graph
from growpipe.graph_ops.groups.channel_groups import find_channel_groups
from growpipe.graph_ops.plan.data_free import random_plan
from growpipe.pages.content import Measured
from growpipe.pages.page import difference_page, run_page
from growpipe.pages.scales import Scale, grouped, short, signed
from growpipe.pages.svg import tag
from growpipe.quality import METRICS
from tests.helpers.stories import story
from tests.helpers.text_models import text_model

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onfocus='alert(1)",
    "{{ 7 * 7 }}{% include 'base.html' %}",
    "</style><style>*{display:none}",
    "]]><svg onload=alert(1)>",
    "javascript:alert(1)",
    "&lt;script&gt;",
    "a\u202eb\x1b[31m\x00\u2028c",
)


class Structure(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_strangers_is_shown_and_never_obeyed(text: str) -> None:
    plain, hostile = Structure(run_page(story())), Structure(run_page(story(text)))
    assert hostile.shape() == plain.shape(), "no element and no attribute comes from a file"
    ours = {attributes.get("href") for _, attributes in hostile.elements if "href" in attributes}
    assert all(link is not None and link.startswith("#") for link in ours)
    assert not any("src" in attributes or "style" in attributes for _, attributes in hostile.elements)
    shown = text.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
    if text.isascii() and text.isprintable():
        assert shown in hostile.words
    assert not re.search("[\x00\x1b\u202e\u2028]", hostile.words)


def test_the_policy_allows_this_style_and_this_script_alone() -> None:
    page = run_page(story())
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    allowed = policy.group(1).replace("&#39;", "'")
    assert allowed.startswith("default-src 'none'; ")
    for element in ("style", "script"):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in allowed
    assert "unsafe" not in allowed
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_the_same_story_gives_the_same_page() -> None:
    assert run_page(story()) == run_page(story())


def test_a_page_says_what_it_shows_in_words() -> None:
    structure = Structure(run_page(story()))
    for words in ("round 2", "rival", "700", "2 × positive pair", "nothing is left to split", "λ−"):  # noqa: RUF001
        assert words in structure.words, words
    pictures = [attributes for tag, attributes in structure.elements if tag == "svg"]
    assert all("aria-label" in a or a.get("aria-hidden") == "true" for a in pictures)
    marks = [a for tag, a in structure.elements if tag == "g" and str(a.get("class")).startswith("mark")]
    assert [a["tabindex"] for a in marks] == ["0"] * 5
    assert "widths 2 2 · 200 parameters · 2,000 MACs · latency 0.5 ms" in str(marks[0]["aria-label"])
    ids = {attributes["id"] for _, attributes in structure.elements if "id" in attributes}
    for _, attributes in structure.elements:
        for key in ("href", "aria-labelledby"):
            if attributes.get(key):
                assert str(attributes[key]).lstrip("#") in ids
    headings = [tag for tag, _ in structure.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[:3] == ["h1", "h2", "h2"]


def test_the_metric_and_its_direction_are_told() -> None:
    words = Structure(run_page(story(quality=METRICS["rmse"]))).words
    assert "test RMSE (lower is better)" in words
    assert "Down and to the left is better." in words
    assert "accuracy" not in words
    assert "Up and to the left is better." in Structure(run_page(story())).words


def test_an_unfinished_run_has_a_page() -> None:
    empty = dataclasses.replace(story(), networks=(), rounds=(), curves=(), checks=(), environment=())
    assert "No round has been analysed yet." in run_page(empty)


def test_a_page_stays_small_whatever_it_is_about() -> None:
    long = dataclasses.replace(
        story("x" * 10_000, rounds=12, groups=500),
        curves=(
            dataclasses.replace(story().curves[0], validation_loss=(0.5,) * 10**5, train_loss=(0.4,) * 10**5),
        ),
    )
    assert len(run_page(long).encode()) < 4_000_000


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300])
def test_odd_numbers_are_drawn(odd: float) -> None:
    base = story(quality=METRICS["loss"])
    networks = tuple(dataclasses.replace(n, score=Measured(odd, odd, odd)) for n in base.networks)
    curve = dataclasses.replace(base.curves[0], validation_loss=(odd, 1.0), train_loss=(odd, odd))
    page = run_page(dataclasses.replace(base, networks=networks, curves=(curve,)))
    places = re.findall(r' (?:x|y|cx|cy|x1|x2|y1|y2|width|height|points)="([^"]*)"', page)
    assert not any(re.search("nan|inf", place) for place in places)


def test_scales_have_round_ticks() -> None:
    assert Scale(0, 10, 0, 100).ticks(5) == [0, 2, 4, 6, 8, 10]
    assert Scale(0.93, 1.02, 0, 1).ticks(4) == pytest.approx([0.95, 0.975, 1.0])
    assert Scale(1, 1000, 0, 1, True).ticks(4) == [1, 10, 100, 1000]
    assert Scale(3, 4, 0, 1, True).ticks(6)[0] == pytest.approx(3.0)
    assert Scale(0, 10, 100, 0)(2.5) == 75
    assert Scale(1, 100, 0, 10, True)(10) == pytest.approx(5)
    assert Scale.over([math.nan], 0, 1)(0.5) == 0.5
    assert Scale.over([5, 5], 0, 1)(5) == pytest.approx(0.5)


def test_numbers_in_words() -> None:
    assert [short(v) for v in (0.05, 999, 1200, 3.4e6, 2e9)] == ["0.05", "999", "1.2k", "3.4M", "2G"]
    assert [grouped(v) for v in (1234567, 0.12345)] == ["1,234,567", "0.1235"]
    assert [signed(v) for v in (0.5, -0.25, 0)] == ["+0.5", "\u22120.25", "0"]


def test_attributes_are_escaped() -> None:
    assert str(tag("g", "a<b", class_='x"y', x=1.5, y=None)) == '<g class="x&#34;y" x="1.5">a&lt;b</g>'


def test_a_difference_as_a_page() -> None:
    model = text_model(
        "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)",
        "float[N,4] x",
        "float[N,2] y",
        a=np.ones((4, 3), np.float32),
        b=np.ones((3, 2), np.float32),
    )
    child = grow_graph(model, random_plan(find_channel_groups(model), model, growth=0.5))
    difference = difference_of(model, child)
    words = Structure(difference_page(difference, "<parent>.onnx", "child.onnx")).words
    assert "<parent>.onnx" in words
    assert "float [4, 3]" in words
    assert difference.summary in words
    assert "Nothing changed" in difference_page(difference_of(model, model), "a", "a")
