#!/usr/bin/env python
"""Does everything that a built site points at exist?

    python tools/links.py FOLDER        one line a fault; exit 1 if there is any

Checked are the links, anchors, pictures, scripts and style sheets of every page, what the style
sheets load, and where the search leads. Nothing but a plain link may lead to another host."""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ADDRESSES = ("href", "src", "poster", "data")  # the attributes that hold one
LINKS = ("a", "area")  # what a reader follows; browsers fetch all the others by themselves


class Page(HTMLParser):
    """The anchors of a page, and what it points at: a tag and an address each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors = {"", "top"}
        self.targets: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            value = value or ""
            if name == "id" or (tag, name) == ("a", "name"): self.anchors.add(value)
            elif name in ADDRESSES: self.targets.append((tag, value))
            elif name == "srcset":
                self.targets += [(tag, candidate.split()[0]) for candidate in value.split(",")]


def targets(root: Path, pages: dict[Path, Page]) -> Iterator[tuple[Path, str, str]]:
    """All that the site points at: the file that does, the tag, the address."""
    for file, page in pages.items():
        for tag, address in page.targets: yield file, tag, address
    for file in root.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        for address in re.findall(r'(?:@import\s+(?:url\()?|url\()\s*["\']?([^"\')#;\s]+)', text):
            yield file, "css", address
    for file in root.rglob("search.json"):
        for entry in json.loads(file.read_text(encoding="utf-8")): yield file, "a", entry["href"]


def fault(file: Path, tag: str, address: str, root: Path, pages: dict[Path, Page]) -> str | None:
    """What is wrong with an address that stands in `file`, if anything is."""
    url = urlsplit(address)
    if url.netloc: return None if tag in LINKS else f"{address} is on another host"
    if url.scheme: return None  # data: or mailto:
    start = root if url.path.startswith("/") else file.parent
    target = (start / unquote(url.path).lstrip("/")).resolve() if url.path else file
    if target.is_dir(): target /= "index.html"
    if not target.is_relative_to(root): return f"{address} lies outside of the site"
    if not target.exists(): return f"{address} does not exist"
    if target in pages and unquote(url.fragment) not in pages[target].anchors:
        return f"{address} names no anchor there"
    return None


def check(root: Path) -> tuple[int, list[str]]:
    """How many addresses the site in `root` holds, and a line for each that leads nowhere."""
    root = root.resolve()
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in root.rglob("*.html")}
    found = list(targets(root, pages))
    wrong = {(file, fault(file, tag, address, root, pages)) for file, tag, address in found}
    lines = sorted(f"{file.relative_to(root)}: {what}" for file, what in wrong if what)
    return len(found), lines if pages else [f"{root}: no pages"]


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    count, faults = check(folder)
    for line in faults: print(line)
    if faults: sys.exit(1)
    print(f"{count} links and assets in {folder}: all there")


if __name__ == "__main__": main()
