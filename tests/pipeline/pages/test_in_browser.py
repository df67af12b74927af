"""Pages in a real browser: they render without errors and requests, and answer pointer and keyboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from growpipe.pages.page import run_page
from tests.helpers.browser import Page, browser_page
from tests.helpers.stories import story


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(run_page(story("<img src=http://127.0.0.1:9/x onerror=alert(1)>")), encoding="utf-8")
    return f"file://{path}"


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with browser_page() as opened:
        opened.resize(1100, 800)
        opened.open(address)
        yield opened


TIP = "document.getElementById('tip')"


def test_it_renders_without_errors_and_requests(page: Page, address: str) -> None:
    assert page.evaluate("document.querySelectorAll('.mark').length") == 5
    assert page.evaluate("document.querySelector('.chart').getBoundingClientRect().height") > 200
    assert page.problems == []
    assert set(page.requests) == {address}


def test_a_pointer_shows_widths_macs_and_latency(page: Page) -> None:
    page.point_at(".mark .shape")
    assert page.evaluate(f"{TIP}.classList.contains('shown')")
    words = page.evaluate(f"{TIP}.textContent")
    assert words.startswith("round 0\n80.0 %")
    assert "widths 2 2\n200 parameters\n2,000 MACs\nlatency 0.5 ms" in words
    page.point_at(".band")
    assert page.evaluate(f"{TIP}.textContent").startswith("epoch 1\ngrown: validation 1, training 1.1")
    page.point_at("h1")
    assert not page.evaluate(f"{TIP}.classList.contains('shown')")


def test_the_keyboard_reaches_every_network(page: Page) -> None:
    page.evaluate("document.querySelector('#networks').setAttribute('tabindex', '-1')")
    page.evaluate("document.querySelector('#networks').focus()")
    found = []
    for _ in range(5):
        page.press("Tab")
        found.append(page.evaluate(f"{TIP}.textContent.split('\\n')[0]"))
    assert found == ["round 0", "round 1", "round 2", "rival (deployed)", "control"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label').startsWith('control')")


def test_both_themes_and_the_button_between_them(page: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page.prefer("light")
    light = page.evaluate(paper)
    page.prefer("dark")
    dark = page.evaluate(paper)
    assert light != dark
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate(paper) == light
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate(paper) == dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_their_ground(page: Page, theme: str) -> None:
    """Contrast of at least 4.5, as WCAG AA asks, for plain, quiet and coloured words."""
    page.evaluate("delete document.documentElement.dataset.theme")
    page.prefer(theme)
    ground = _luminance(
        page.evaluate("getComputedStyle(document.querySelector('section:nth-of-type(2)')).backgroundColor")
    )
    for selector in (".verdict", "#networks p", ".legend", ".better", "summary", "thead th"):
        words = _luminance(page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color"))
        dark, light = sorted((ground, words))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


def _luminance(color: str) -> float:
    channels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_it_fits_a_phone(page: Page) -> None:
    page.resize(360, 740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    # The words of a chart shrink with it: they must stay readable.
    scale = "document.querySelector('.chart').getBoundingClientRect().width / 720"
    size = page.evaluate(
        f"parseFloat(getComputedStyle(document.querySelector('.chart .name')).fontSize) * {scale}"
    )
    assert size >= 9.5
    page.resize(1100, 800)
    assert page.problems == []
