"""The page at `/` in a real browser: drop a photo, read the labels, move the slider."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DROP = """([data, type, name]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  document.querySelector("#drop").dispatchEvent(
    new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture
def page(server: str) -> Iterator[Page]:
    with opened(server) as page:
        yield page


@contextmanager
def opened(server: str) -> Iterator[Page]:
    """The page at a URL in a browser; its scripts must raise nothing, and ask nobody else."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        context = playwright.chromium.launch_persistent_context(
            folder, executable_path=CHROMIUM, args=ARGS, viewport={"width": 900, "height": 1200}
        )
        page = context.pages[0]
        asked: list[str] = []
        problems: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(server)
        yield page
        assert problems == []
        assert [u for u in asked if not u.startswith((server, "data:", "blob:"))] == [], "the page asks nobody else"
        context.close()


def drop(page: Page, content: bytes, name: str = "street.jpg", kind: str = "image/jpeg") -> None:
    page.evaluate(DROP, [base64.b64encode(content).decode(), kind, name])


def test_a_dropped_photo_shows_named_boxes(page: Page, bus: bytes, tmp_path: Path) -> None:
    drop(page, bus)
    expect(page.get_by_role("status")).to_contain_text("1 × bus", timeout=30_000)
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "The photo with its boxes: " + summary(page))
    rows = page.locator("tbody tr")
    assert rows.count() >= 4
    assert "bus" in "".join(rows.all_inner_texts())
    blank = page.evaluate("() => { const c = document.createElement('canvas'); return c.toDataURL().length }")
    assert page.evaluate("() => document.querySelector('#canvas').toDataURL('image/jpeg').length") > 100 * blank
    assert "Preprocess" in page.locator("#times").inner_text()
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)


def summary(page: Page) -> str:
    return page.get_by_role("status").inner_text()


def test_the_slider_filters_without_another_request(page: Page, bus: bytes) -> None:
    drop(page, bus)
    rows = page.locator("tbody tr")
    expect(rows.first).to_be_visible(timeout=30_000)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    counts = []
    for value in (5, 25, 95):
        page.locator("#conf").fill(str(value))
        counts.append(rows.count())
    assert counts[0] >= counts[1] > counts[2] == 0
    assert "conf=0.95" in page.locator("#curl").inner_text()
    page.locator("#conf").focus()
    page.keyboard.press("Home")
    assert rows.count() == counts[0], "the keyboard moves it too"
    assert asked == []


def test_the_switch_looks_for_small_objects(page: Page, street: bytes) -> None:
    """Nine small photos in one: their people are small."""
    drop(page, street)
    rows = page.locator("tbody tr")
    expect(rows.first).to_be_visible(timeout=30_000)
    before = rows.count()
    page.get_by_label("look for small objects, in tiles").check()
    expect(page.locator("#times")).to_contain_text(" tiles)", timeout=30_000)
    assert rows.count() > before
    assert "&tile=auto'" in page.locator("#curl").inner_text()


def test_a_broken_photo_tells_why_and_the_next_one_works(page: Page, bus: bytes) -> None:
    drop(page, bus[:3000], "broken.jpg")
    expect(page.get_by_role("alert")).to_contain_text("corrupt_image", timeout=30_000)
    expect(page.locator("#result")).to_be_hidden()
    drop(page, bus)
    expect(page.get_by_role("status")).to_contain_text("bus", timeout=30_000)
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_chosen_file_with_an_odd_name(page: Page, bus: bytes, tmp_path: Path) -> None:
    photo = tmp_path / "it's <b>me.jpg"
    photo.write_bytes(bus)
    page.set_input_files("#file", photo)
    expect(page.get_by_role("status")).to_contain_text("bus", timeout=30_000)
    assert page.locator("#curl").inner_text().startswith("curl -F 'file=@it'\\''s <b>me.jpg'")
    assert page.locator("#result b").count() == 0


def test_everything_can_be_named(page: Page) -> None:
    """What a screen reader needs: a language, a heading, and a label on each control."""
    assert page.locator("html").get_attribute("lang") == "en"
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for label in ("choose a file", "take a photo"):
        expect(page.get_by_label(label)).to_have_count(1)
    expect(page.get_by_label("Confidence")).to_have_count(1)
