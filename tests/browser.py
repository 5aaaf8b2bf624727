"""A headless Chromium for tests, and what they ask of a page: contrast, overflow, names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")

PATIENCE = 120_000
"""Milliseconds: a busy machine is no fault of the page."""


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Playwright's own Chromium, or the one on the path; the test is skipped without."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (requirements/dev.lock)"
    )
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if not own.is_file() and found is None:
            pytest.skip("there is no Chromium; `make browser` fetches one")
        browser = playwright.chromium.launch(
            executable_path=None if own.is_file() else found,
            timeout=PATIENCE,
            chromium_sandbox=os.geteuid() != 0,  # it refuses to run as root
        )
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page opened from disk without a network, with what it asked for and complained about."""

    page: Page
    requests: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])
    complaints: list[str] = field(default_factory=list[str])


@contextmanager
def opened(
    browser: Browser, path: Path, *, width: int = 1180, height: int = 900, scheme: str = "light"
) -> Iterator[Opened]:
    """Open a file in a window of its own.

    Args:
        browser: From `open_chromium`.
        path: The page.
        width: Of the window, in CSS pixels.
        height: Likewise.
        scheme: "light" or "dark", what the reader prefers.
    """
    context = browser.new_context(
        offline=True,
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    context.set_default_timeout(PATIENCE)
    found = Opened(context.new_page())
    found.page.on("request", lambda each: found.requests.append(each.url))
    found.page.on("requestfailed", lambda each: found.failed.append(each.url))
    found.page.on("pageerror", lambda each: found.complaints.append(str(each)))
    found.page.on(
        "console",
        lambda each: (
            found.complaints.append(each.text) if each.type in ("error", "warning") else None
        ),
    )
    found.page.goto(path.resolve().as_uri())
    yield found
    context.close()


OVERFLOWING = """
() => {
  const scrolls = node => {
    for (let up = node.parentElement; up; up = up.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(up).overflowX)) return true;
    return false;
  };
  const width = document.documentElement.clientWidth;
  const found = [...document.body.querySelectorAll("*")].filter(node =>
    !node.closest("svg svg, svg *") && !scrolls(node) &&
    node.getBoundingClientRect().right > width + 1);
  const names = found.map(node => node.tagName + ": " + node.textContent.trim().slice(0, 40));
  if (document.documentElement.scrollWidth > width) names.push("the page itself");
  return names;
}
"""
"""Elements that reach beyond the window and lie in nothing that scrolls."""

CONTRASTS = """
() => {
  const parse = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const luminance = colour => {
    const [r, g, b] = colour.slice(0, 3).map(part => part / 255).map(part =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    const layers = [];
    for (let up = node; up; up = up.parentElement)
      layers.push(parse(getComputedStyle(up).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility() || node.closest("svg, style")) continue;
    const paper = behind(node), ink = over(parse(getComputedStyle(node).color), paper);
    const [dark, light] = [luminance(ink), luminance(paper)].sort((a, b) => a - b);
    found.push([(light + 0.05) / (dark + 0.05), text.slice(0, 40)]);
  }
  return found;
}
"""
"""Of every visible text: contrast with what lies behind it (WCAG 2.2, 1.4.3), and its beginning."""

UNNAMED = """
() => [
  ...[...document.querySelectorAll("img")].filter(node => !node.alt.trim()),
  ...[...document.querySelectorAll("main svg")].filter(node =>
    node.getAttribute("role") != "img" || !(node.getAttribute("aria-label") || "").trim()),
  ...[...document.querySelectorAll("th")].filter(node => !node.scope),
  ...[...document.querySelectorAll("table")].filter(node =>
    !node.querySelector("thead th") || !node.getAttribute("aria-label")),
  ...[...document.querySelectorAll("tbody tr")].filter(node =>
    !node.querySelector("th[scope=row]")),
  ...[...document.querySelectorAll("*")].filter(node =>
    ["auto", "scroll"].includes(getComputedStyle(node).overflowX) &&
    node.scrollWidth > node.clientWidth && node.tabIndex < 0),
].map(node => node.outerHTML.slice(0, 80))
"""
"""Pictures without a text, headers without a scope, tables without a name, and what scrolls and
cannot be reached by the keyboard."""

HEADINGS = """
() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map(node => +node.tagName[1])
"""
"""Levels of the headings, in their order."""
