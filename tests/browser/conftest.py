"""The built book in headless Chromium: a server on loopback, a browser, the pages.

Run with ``python -m pytest tests/browser`` after building the book; a run that does not
name this folder leaves it out. Pages come from ``_build/html``, or from the folder that
MEDLM_SITE names.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("MEDLM_SITE") or ROOT / "_build" / "html")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NOT_CONTENT = ("_static", "_sources", "_modules")


def chromium() -> str:
    """The browser's path; where there is none, fail in CI and skip elsewhere."""
    named = os.environ.get("MEDLM_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found and Path(found).exists():
        return found
    reason = (
        f"No Chromium: {named or ', '.join(BROWSERS)} not found. Install the system's "
        "chromium package, or set MEDLM_CHROMIUM to the browser's path."
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pages() -> list[str]:
    """Every page of the site, without the listings of source code."""
    found = (path.relative_to(SITE) for path in SITE.rglob("*.html"))
    return sorted(
        path.as_posix()
        for path in found
        if path.parts[0] not in NOT_CONTENT and path.as_posix() != "index.html"
    )


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave these tests out of runs that do not name this folder."""
    named = any("browser" in str(argument) for argument in config.args)
    return None if named else True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for every page."""
    if "page_name" in metafunc.fixturenames:
        metafunc.parametrize("page_name", pages() or ["index.html"])


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the book, served on loopback."""
    if not (SITE / "index.html").is_file():
        pytest.fail(f"No book in {SITE}. Build it first: make html", pytrace=False)
    handler = functools.partial(QuietHandler, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Headless Chromium from the system's packages."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"]
        )
        yield running
        running.close()
