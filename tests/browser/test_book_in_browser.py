"""What a reader meets: every page, in light and dark, on a desk and on a phone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

SCREENSHOTS = Path(__file__).resolve().parents[2] / "_build" / "screenshots"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
CHAPTER = "notebooks/01_attention.html"
PIECE = 8000  # pixels; Chromium draws nothing below 16384
SERIOUS = {"serious", "critical"}


@contextmanager
def opened(
    browser: Browser,
    address: str,
    size: dict[str, int] = DESKTOP,
    scheme: str = "light",
) -> Iterator[Page]:
    """A page in a fresh browser profile, wholly loaded."""
    context = browser.new_context(
        viewport=size, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.troubles = watch(page, address)
    page.goto(address, wait_until="networkidle")
    yield page
    context.close()


def watch(page: Page, address: str) -> list[str]:
    """A list that fills with everything that goes wrong while the page lives."""
    host = "/".join(address.split("/")[:3])
    troubles: list[str] = []

    def asked(request) -> None:
        if not request.url.startswith((host, "data:", "blob:")):
            troubles.append(f"request to another host: {request.url}")

    def answered(response) -> None:
        if response.status >= 400:
            troubles.append(f"{response.status} {response.url}")

    def said(message) -> None:
        if message.type in ("error", "warning"):
            troubles.append(f"console {message.type}: {message.text}")

    page.on("request", asked)
    page.on("response", answered)
    page.on("console", said)
    page.on("pageerror", lambda error: troubles.append(f"script error: {error}"))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
    return troubles


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_is_sound(browser, site, page_name, size, scheme):
    """Opens without trouble, fits its width, can be read by all.

    A page that fails is kept as a picture, and every page with MEDLM_PICTURES=1.
    """
    with opened(browser, f"{site}/{page_name}", size, scheme) as page:
        assert page.title()
        assert page.locator("html").get_attribute("data-theme") == scheme
        found = {
            "troubles": list(page.troubles),  # before axe fetches style sheets itself
            "wider than the window": too_wide(page),
            "axe": serious_violations(page, contrast=size is DESKTOP),
        }
        if any(found.values()) or os.environ.get("MEDLM_PICTURES") == "1":
            keep_picture(page, page_name, size, scheme)
    assert not any(found.values()), json.dumps(found, indent=1)


def too_wide(page: Page) -> list[str]:
    """What makes the page scroll sideways, if it does."""
    if page.evaluate("() => { window.scrollTo(500, 0); return window.scrollX; }") == 0:
        return []
    return page.evaluate(
        """() => {
          const limit = document.documentElement.clientWidth;
          const far = e => e.getBoundingClientRect().right + scrollX > limit + 1;
          const wide = [...document.querySelectorAll("main *")].filter(far);
          return wide.map(e => e.outerHTML.slice(0, 120)).slice(0, 5).concat("...");
        }"""
    )


def serious_violations(page: Page, contrast: bool) -> list[dict[str, object]]:
    """What axe-core calls serious or critical.

    Contrast takes most of the time, and colours are the same at every width.
    """
    rules = {} if contrast else {"color-contrast": {"enabled": False}}
    options = {"resultTypes": ["violations"], "rules": rules}
    violations = Axe().run(page, options=options).response["violations"]
    return [
        {"rule": found["id"], "where": [node["html"][:200] for node in found["nodes"]]}
        for found in violations
        if found["impact"] in SERIOUS
    ]


def keep_picture(page: Page, name: str, size: dict[str, int], scheme: str) -> None:
    """Pictures of the whole page in _build/screenshots, in pieces if it is long."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    stem = name.removesuffix(".html").replace("/", "-")
    stem = f"{stem}-{size['width']}-{scheme}"
    for earlier in SCREENSHOTS.glob(f"{stem}*.png"):
        earlier.unlink()
    height = page.evaluate("() => document.documentElement.scrollHeight")
    page.evaluate("() => window.scrollTo(0, 0)")
    if height <= PIECE:
        page.screenshot(path=SCREENSHOTS / f"{stem}.png", full_page=True)
        return
    page.set_viewport_size({"width": size["width"], "height": PIECE})
    for number, top in enumerate(range(0, height, PIECE), start=1):
        page.evaluate("top => window.scrollTo(0, top)", top)
        page.screenshot(path=SCREENSHOTS / f"{stem}-{number:02d}.png")


def test_first_page_is_reached_from_the_root(browser, site):
    with opened(browser, f"{site}/") as page:
        expect(page.locator("article h1")).to_contain_text("Language Models")


def test_search_finds_attention(browser, site):
    with opened(browser, f"{site}/search.html?q=attention") as page:
        results = page.locator("#search-results li a")
        expect(results.first).to_be_visible(timeout=10_000)
        targets = [link.get_attribute("href") for link in results.all()]
        assert any("01_attention" in (target or "") for target in targets)
        assert page.troubles == []


def test_search_dialog_leads_to_the_results(browser, site):
    with opened(browser, f"{site}/{CHAPTER}") as page:
        page.locator(".search-button-field").click()
        page.locator(
            "dialog input[type=search], .search-button__wrapper input"
        ).first.fill("softmax")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=softmax")
        expect(page.locator("#search-results li a").first).to_be_visible(timeout=10_000)


def test_theme_switch_changes_the_theme(browser, site):
    with opened(browser, f"{site}/{CHAPTER}") as page:
        root = page.locator("html")
        seen = {root.get_attribute("data-theme")}
        for _ in range(2):
            page.locator(".theme-switch-button:visible").first.click()
            seen.add(root.get_attribute("data-theme"))
        assert seen == {"light", "dark"}
        assert page.troubles == []


def test_folded_solution_opens(browser, site):
    with opened(browser, f"{site}/{CHAPTER}") as page:
        folded = page.locator("article details").first
        assert folded.get_attribute("open") is None
        folded.locator("summary").click()
        assert folded.get_attribute("open") is not None
        shown = folded.evaluate("e => e.getBoundingClientRect().height")
        assert shown > 60


CELL_OUT_OF_VIEW = """
() => [...document.querySelectorAll("article table:not(.dataframe) :is(td, th)")]
  .filter(cell => cell.getBoundingClientRect().right > innerWidth + 1)
  .map(cell => cell.textContent.trim())
"""


@pytest.mark.parametrize("name", ["coverage", "results"])
def test_every_cell_is_in_view_on_a_phone(browser, site, name):
    with opened(browser, f"{site}/book/{name}.html", PHONE) as page:
        assert page.locator("article table td").count() > 5
        assert page.evaluate(CELL_OUT_OF_VIEW) == []


def test_wide_figures_keep_a_legible_width_on_a_phone(browser, site):
    with opened(browser, f"{site}/{CHAPTER}", PHONE) as page:
        wide = page.locator(".medlm-wide-figure img")
        assert wide.count() >= 5
        assert min(wide.evaluate_all("all => all.map(e => e.clientWidth)")) > 550
        others = page.locator(".cell_output > img")
        assert others.count() >= 3
        assert max(others.evaluate_all("all => all.map(e => e.clientWidth)")) < 390


def test_formulas_of_the_chapter_fit_a_phone(browser, site):
    with opened(browser, f"{site}/{CHAPTER}", PHONE) as page:
        page.wait_for_function("MathJax.startup.promise.then(() => true)")
        over = """all => all.filter(e => e.scrollWidth > e.clientWidth + 1)
          .map(e => e.textContent)"""
        formulas = page.locator('mjx-container[display="true"]')
        assert formulas.count() > 3
        assert formulas.evaluate_all(over) == []


def test_formulas_are_set(browser, site):
    with opened(browser, f"{site}/{CHAPTER}") as page:
        expect(page.locator("mjx-container").first).to_be_visible(timeout=10_000)
        assert page.locator("mjx-merror").count() == 0
