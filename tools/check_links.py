"""Check the built pages: every internal link leads somewhere, no asset is foreign.

    python tools/check_links.py [FOLDER]

An asset is what the browser loads by itself: scripts, styles, images, fonts. Ordinary
links to other sites are fine. Exit status 1, with a list, if anything is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_build" / "html"

# Attributes that make a browser load something, whatever the tag.
LOADS = {"src", "poster", "data", "background"}
# Of <link>, only these kinds of `rel` name a mere relation, not something to load.
RELATIONS = {"search", "next", "prev", "index", "author", "canonical", "alternate"}
CSS_ADDRESS = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
REFRESH = re.compile(r"url\s*=\s*['\"]?([^'\"]+)", re.IGNORECASE)


class Page(HTMLParser):
    """What one page links to, what it loads, and which ids it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.assets: list[str] = []
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, links and assets of one tag."""
        given = {name: value for name, value in attrs if value}
        self._in_style = tag == "style"
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        self.assets += [given[name] for name in LOADS if name in given]
        self.assets += css_addresses(given.get("style", ""))
        if "srcset" in given:
            self.assets += [part.split()[0] for part in given["srcset"].split(",")]
        if "href" in given:
            kinds = set(given.get("rel", "").lower().split())
            loads = tag in ("image", "use") or (tag == "link" and not kinds & RELATIONS)
            (self.assets if loads else self.links).append(given["href"])
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.links += REFRESH.findall(given.get("content", ""))

    def handle_endtag(self, tag: str) -> None:
        """A style ends."""
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        """Addresses inside <style>."""
        if self._in_style:
            self.assets += css_addresses(data)


def css_addresses(css: str) -> list[str]:
    """The addresses that a style sheet loads."""
    found = CSS_ADDRESS.findall(COMMENT.sub("", css))
    return [(url or imported).strip() for url, imported in found]


def check(folder: Path) -> list[str]:
    """Everything that is wrong below `folder`, one line each."""
    pages = {path: Page(read(path)) for path in sorted(folder.rglob("*.html"))}
    # Templates of the theme lie among the static files; no reader opens them.
    pages = {path: page for path, page in pages.items() if "_static" not in path.parts}
    if not pages:
        return [f"{folder}: no pages. Build the book first: python tools/build_book.py"]
    ids = {path: page.ids for path, page in pages.items()}
    wrong = [
        f"{path.relative_to(folder).as_posix()}: {problem}"
        for path, page in pages.items()
        for problem in problems_of(path, page, ids, folder)
    ]
    return wrong + list(wrong_styles(folder))


def problems_of(
    path: Path, page: Page, ids: dict[Path, set[str]], folder: Path
) -> Iterator[str]:
    """What is wrong with one page."""
    for address in dict.fromkeys(page.assets):
        if is_foreign(address):
            yield f"loads {address} from another host"
        elif problem := broken(address, path, ids, folder):
            yield problem
    for address in dict.fromkeys(page.links):
        if not is_foreign(address) and (problem := broken(address, path, ids, folder)):
            yield problem


def is_foreign(address: str) -> bool:
    """Whether an address names a host."""
    return bool(urlsplit(address).netloc)


def broken(
    address: str, path: Path, ids: dict[Path, set[str]], folder: Path
) -> str | None:
    """Why an internal address leads nowhere, or None."""
    parts = urlsplit(address)
    if parts.scheme:  # mailto:, data:, javascript:
        return None
    if parts.path.startswith("/"):
        return f"{address} is not relative: it breaks when the site lies in a folder"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target = target / "index.html"
    if not target.is_relative_to(folder) or not target.is_file():
        return f"{address} leads to no file"
    fragment = unquote(parts.fragment)
    if fragment and target in ids and fragment not in ids[target] | {"top"}:
        return f"{address} leads to no id"
    return None


def wrong_styles(folder: Path) -> Iterator[str]:
    """Style sheets that load from another host."""
    for path in sorted(folder.rglob("*.css")):
        for address in css_addresses(read(path)):
            if is_foreign(address):
                name = path.relative_to(folder).as_posix()
                yield f"{name}: loads {address} from another host"


def read(path: Path) -> str:
    """A text file's content."""
    return path.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    """Check the folder of the command line, or the book just built."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER).resolve()
    wrong = check(folder)
    print("\n".join(wrong) if wrong else f"Links and assets of {folder} are fine.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
