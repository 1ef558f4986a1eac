"""The report in a real browser: it draws, switches, fits phones and the dark, stays offline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import blockfold
from blockfold.tests.tools.harness import Files

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENS: dict[str, dict[str, Any]] = {
    "desk": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 390, "height": 800}, "is_mobile": True, "has_touch": True},
    "dark": {"color_scheme": "dark"},
}

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the report was NOT opened in a browser"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(files: Files, small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a run that was kept, of one that was not, and of a survey alone."""
    folder = tmp_path_factory.mktemp("pages")
    options: dict[str, Any] = {"threads": 1, "provider": "cpu"}
    with pytest.raises(blockfold.NotKept) as caught:
        blockfold.optimize(files.model, files.data, remove=9, **options)
    seen = blockfold.inspect(files.model, files.data, **options)
    return {
        "kept": small.with_suffix(".report.html"),
        "rejected": caught.value.report(folder / "rejected.html"),
        "inspected": seen.report(folder / "inspected.html"),
    }


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def opened(browser: Browser, path: Path, **how: Any) -> Opened:
    found = Opened(browser.new_context(**how).new_page())
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(path.as_uri())
    found.page.wait_for_selector("body[data-drawn]", timeout=60_000)
    return found


@pytest.mark.parametrize("how", SCREENS.values(), ids=SCREENS)
@pytest.mark.parametrize("name", ["kept", "rejected", "inspected"])
def test_every_plot_is_drawn_and_nothing_is_asked_for(
    name: str, how: dict[str, Any], browser: Browser, pages: dict[str, Path]
) -> None:
    found = opened(browser, pages[name], **how)
    assert found.said == []
    assert found.asked == [pages[name].as_uri()]
    wide, screen = found.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen, "nothing sticks out to the right"
    count = found.page.locator("figure").count()
    assert count >= 3
    drawn = "svg .points, svg .hm, svg .scatterlayer .trace"
    for at in range(count):
        figure = found.page.locator("figure").nth(at)
        assert figure.locator(drawn).count() > 0, f"{figure.get_attribute('id')} is empty"


def test_switches_change_what_is_drawn(browser: Browser, pages: dict[str, Path]) -> None:
    found = opened(browser, pages["kept"])
    figure = found.page.locator("#spans-0")
    buttons = figure.locator(".switch button")
    seen = set()
    for at in range(buttons.count()):
        buttons.nth(at).click()
        pressed = figure.locator('.switch button[aria-pressed="true"]')
        assert pressed.all_inner_texts() == [buttons.nth(at).inner_text()]
        seen.add(figure.locator(".hm").first.inner_html())
    assert len(seen) == buttons.count() >= 4
    assert found.said == []


def test_numbers_are_shown_when_pointed_at(browser: Browser, pages: dict[str, Path]) -> None:
    found = opened(browser, pages["kept"])
    found.page.locator("#cka-0 .nsewdrag").first.hover()
    assert "CKA" in found.page.locator("#cka-0 .hoverlayer").text_content()


def test_tables_open(browser: Browser, pages: dict[str, Path]) -> None:
    found = opened(browser, pages["kept"])
    table = found.page.locator("#pareto table")
    assert not table.is_visible()
    found.page.locator("#pareto summary").click()
    assert table.is_visible()


def test_the_dark_is_followed(browser: Browser, pages: dict[str, Path]) -> None:
    found = opened(browser, pages["kept"], color_scheme="light")
    text = "getComputedStyle(document.querySelector('#pareto .xtick text')).fill"
    light = found.page.evaluate(text)
    found.page.emulate_media(color_scheme="dark")
    found.page.wait_for_timeout(500)
    assert found.page.evaluate(text) != light
    ground = "getComputedStyle(document.body).backgroundColor"
    assert found.page.evaluate(ground) == "rgb(20, 23, 27)"
