#!/usr/bin/env python
"""Build the site: the notebooks in `nbs/` become the pages in `_docs/`.

    python tools/site.py                 build; needs neither a network nor Quarto
    python tools/site.py --serve         build, then serve on this machine
    python tools/site.py --out FOLDER    build elsewhere

nbdev prepares each notebook (signatures, links between symbols), smalldocs renders it, and what
neither gets right is put right here. Where Quarto is installed, `nbdev_docs` builds the site from
the same sources; `_quarto.yml` has it call this file with `--settle` at the end."""

import argparse
import base64
import configparser
import contextlib
import functools
import html
import http.server
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath

import yaml
from execnb.nbio import read_nb, write_nb
from nbdev import doclinks
from nbdev.processors import FilterDefaults
from nbdev.quarto import refresh_quarto_yml
from smalldocs import layout
from smalldocs.config import load
from smalldocs.markdown import render
from smalldocs.notebook import cell_options
from smalldocs.site import Site

import links

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
PARTS = {  # the number of the first chapter of each part, and its title
    1: "Part 1 — theory",
    10: "Part 2 — autoencoders",
    20: "Part 3 — VAE",
    30: "Part 4 — tables",
    40: "Part 5 — time series",
    50: "Part 6 — music",
    60: "Part 7 — using it",
    90: "Appendix",
}


def settings() -> configparser.SectionProxy:
    """What `settings.ini` says of the project."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


# ---- reading order

def title(notebook: Path) -> str:
    """The heading of the first Markdown cell that begins with one."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    headings = (re.match(r"# (.+)", source) for source in sources)
    return next((heading[1].strip() for heading in headings if heading), notebook.stem)


def sidebar(notebooks: list[Path]) -> dict:
    """The table of contents, as Quarto and smalldocs read it: by number, part by part."""
    contents: list[dict] = [{"text": "Start here", "href": "index.ipynb"}]
    for notebook in sorted(notebooks):
        if notebook.name == "index.ipynb": continue
        entry = {"text": title(notebook), "href": notebook.name}
        number = re.match(r"(\d+)[a-z]?_", notebook.name)
        part = None
        if number:
            chapter = int(number[1])
            entry["text"] = f"{chapter} · {entry['text']}"
            part = PARTS.get(max((first for first in PARTS if first <= chapter), default=0))
        if part is None: contents.append(entry)
        elif contents[-1].get("section") == part: contents[-1]["contents"].append(entry)
        else: contents.append({"section": part, "contents": [entry]})
    return {"website": {"sidebar": {"contents": contents}}}


def write_navigation(notebooks: list[Path]) -> None:
    """Bring `sidebar.yml` in line with the notebooks, and `nbdev.yml` with `settings.ini`."""
    text = yaml.safe_dump(sidebar(notebooks), allow_unicode=True, sort_keys=False)
    (NOTEBOOKS / "sidebar.yml").write_text("# written by tools/site.py\n" + text, encoding="utf-8")
    with contextlib.redirect_stdout(None): refresh_quarto_yml()


# ---- from notebooks to what smalldocs reads

def link_own_symbols_only() -> None:
    """Let nbdev link names in backticks to this package, and not to all others installed."""
    every = doclinks._build_lookup_table
    own = (settings()["lib_name"],)
    doclinks._build_lookup_table = lambda *_: every(None, own, None)


def prepare(notebook: Path, folder: Path) -> None:
    """Write `notebook`, processed by nbdev and by us, into `folder`, its pictures beside it."""
    nb = read_nb(notebook)
    FilterDefaults()(nb)
    drop_repeated_signatures(nb.cells)
    for cell in nb.cells:
        if cell.cell_type == "code": save_pictures(cell, folder, notebook.stem)
        if cell.cell_type == "markdown": cell.source = mark_summaries(cell.source)
    write_nb(nb, folder / notebook.name)


def drop_repeated_signatures(cells: list) -> None:
    """Where the source of a symbol is shown, keep the heading alone of what nbdev says of it."""
    folded = '#| code-fold: show\n#| code-summary: "Exported source"\n'
    names = set()
    for cell in cells:
        if not cell.source.startswith(folded): continue
        cell.source = cell.source.removeprefix(folded)
        names |= set(re.findall(r"^(?:def|class) (\w+)", cell.source, re.MULTILINE))
    for cell in cells:
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            heading = re.match(r"---\n\n(.*?^### ([\w.]+)\n)", text, re.DOTALL | re.MULTILINE)
            if heading and heading[2].split(".")[-1] in names:
                output.data["text/markdown"] = heading[1]


def save_pictures(cell, folder: Path, page: str) -> None:
    """Turn the pictures among a cell's outputs into files, shown at their logical size.

    smalldocs would write them into the page, twice as large where they were made for a fine
    screen, and would not set the formulas of their captions."""
    options, _ = cell_options(cell.source)
    outputs = cell.get("outputs", [])
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    for n, output in enumerate(pictures):
        png = base64.b64decode("".join(output.data["image/png"]))
        name = f"{page}_files/{cell.id}-{n}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png)
        size = dict(zip(("width", "height"), struct.unpack(">II", png[16:24])))
        size.update(output.get("metadata", {}).get("image/png", {}))
        attributes = {"src": name, "alt": options.get("fig-alt", ""), **size}
        img = "".join(f' {key}="{html.escape(str(value))}"' for key, value in attributes.items())
        caption = options.get("fig-cap", "")
        if caption: caption = f"<figcaption>{render(caption, {})}</figcaption>"
        output.data = {"text/html": f"<figure><img{img}>{caption}</figure>"}


def mark_summaries(markdown: str) -> str:
    """Mark the formulas in `<summary>…</summary>`, which smalldocs passes on unread."""
    def marked(summary: re.Match) -> str:
        return re.sub(r"\$([^$]+)\$", r'<span class="math inline">\\(\1\\)</span>', summary[0])
    return re.sub(r"<summary>.*?</summary>", marked, markdown, flags=re.DOTALL)


# ---- from there to pages

class Book(Site):
    """A smalldocs site whose pages have nbdev's names: `core.html`, not `00_core.html`."""

    def read(self, src):
        page = super().read(src)
        page.out = page.out.with_name(page.front.get("output-file", page.out.name))
        return page

    def find_page(self, target):
        by_name = (page for page in self.pages.values() if page.out == target)
        return super().find_page(target) or next(by_name, None)

    def render_page(self, page):
        super().render_page(page)
        page.env["math"] = True  # captions hold formulas too, which it does not see

    def write_sitemap(self):
        if settings()["doc_host"]: super().write_sitemap()

    def run_scripts(self, key, inputs):
        """Nothing: `build` does what `_quarto.yml` asks of Quarto."""


def build(out: Path) -> None:
    """Build the whole site into `out`."""
    os.chdir(ROOT)  # where nbdev looks for settings.ini
    os.environ["IN_TEST"] = "1"  # as nbdev has it while it runs the cells that it documents
    sys.path.insert(0, str(ROOT))
    layout.KATEX = "assets/katex"
    link_own_symbols_only()
    notebooks = sorted(NOTEBOOKS.glob("[!_.]*.ipynb"))
    write_navigation(notebooks)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work).resolve()
        skipped = shutil.ignore_patterns("*.ipynb", ".*")
        shutil.copytree(NOTEBOOKS, folder, ignore=skipped, dirs_exist_ok=True)
        for notebook in notebooks: prepare(notebook, folder)
        book = Book(load(folder), quiet=True)
        book.out = out
        pictures = folder.glob("*_files/*")
        book.resources |= {PurePosixPath(file.relative_to(folder)) for file in pictures}
        book.build()
    settle(out)
    for page in out.glob("*.html"): rewrite(page, MENDS)
    for theme in out.glob("site_libs/themes/*.css"): rewrite(theme, NO_FOREIGN_LETTERS)


def settle(out: Path) -> None:
    """Make the links and scripts of rendered pages true, whoever rendered them."""
    host, base, code = (settings()[name] for name in ("doc_host", "doc_baseurl", "git_url"))
    home = re.escape((host + base).rstrip("/"))
    anchors = {page.name: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
               for page in out.glob("*.html")}

    def symbol(link: re.Match) -> str:
        """nbdev links every method; where it has no anchor of its own, its class has."""
        page, anchor = link[1], link[2]
        while anchor and anchor not in anchors.get(page, ()): anchor = anchor.rpartition(".")[0]
        return f'<a href="{page}#{anchor}"><code>' if anchor else f'<a href="{page}"><code>'

    changes = [
        (rf'href="(?:{home}/+|\./)([\w.-]+\.html)', r'href="\1'),
        (r'<a href="([\w.-]+\.html)#([\w.]+)"><code>', symbol),
        (r'(href|src)="/assets/', r'\1="assets/'),
        (r'<script[^>]* src="https?://[^>]*></script>\n?', ""),
    ]
    if not code: changes.append((r'<p><a [^>]*href="[^"]*blob/[^>]*>source</a></p>\n?', ""))
    for page in out.glob("*.html"): rewrite(page, changes)


def rewrite(file: Path, changes: list) -> None:
    """Make the changes, each a pattern and what replaces it, in the text of `file`."""
    text = file.read_text(encoding="utf-8")
    for pattern, replacement in changes: text = re.sub(pattern, replacement, text)
    file.write_text(text, encoding="utf-8")


NO_FOREIGN_LETTERS = [(r"@import url\(https?://[^)]*\);", "")]
MENDS = [  # of what keeps some readers out of smalldocs' pages
    # a comma after a formula stays on its line
    (r'<span class="math inline">\\\([^<]{1,40}\\\)</span>[.,;:!?)\]’”]+', r'<span class="kept">\g<0></span>'),
    # beside its class, a method needs no second mention of it
    (r'(<a [^>]*class="nav-link"[^>]*>)\w+(\.\w+</a>)', r"\1\2"),
    # the title of a part is a title, and not two links that lead nowhere
    (r'<div class="sidebar-item-container"><a [^>]*role="navigation"[^>]*>(<span[^>]*>[^<]*</span>)'
     r'</a><a class="sidebar-item-toggle[^>]*><i[^>]*></i></a></div>',
     r'<div class="sidebar-part">\1</div>'),
    # several navigations on a page need names
    (r'<nav id="quarto-sidebar"', r'\g<0> aria-label="Chapters"'),
    (r'<nav class="quarto-secondary-nav"', r'\g<0> aria-label="Menu"'),
    (r'<nav id="TOC"', r'\g<0> aria-labelledby="toc-title"'),
    (r'<nav class="page-navigation"', r'\g<0> aria-label="Previous and next chapter"'),
    # what acts is a button, and has a name
    (r'<a (class="quarto-color-scheme-toggle[^"]*") href="" title="[^"]*"([^>]*><i[^>]*></i>)</a>',
     r'<button type="button" \1 aria-label="Light or dark"\2</button>'),
    (r'<button title="Copy to Clipboard"', '<button type="button" aria-label="Copy" title="Copy"'),
    (r'<input [^>]*type="checkbox"', r'\g<0> aria-label="done"'),
]


# ---- on this machine

class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with the types that browsers insist on, and no stale ones."""
    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".css": "text/css", ".js": "text/javascript", ".json": "application/json",
        ".svg": "image/svg+xml", ".wav": "audio/wav", ".woff": "font/woff", ".woff2": "font/woff2",
    }

    def end_headers(self):
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_):
        """Nothing: the address is all there is to read."""


def serve(folder: Path, port: int | None) -> None:
    """Serve `folder` until Ctrl-C: on `port`, else on 8000, else on whatever is free."""
    handler = functools.partial(Handler, directory=folder)
    for candidate in [8000, 0] if port is None else [port]:
        with contextlib.suppress(OSError):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", candidate), handler)
            break
    else: sys.exit(f"port {port} is taken")
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    with server, contextlib.suppress(KeyboardInterrupt): server.serve_forever()


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=ROOT / settings()["doc_path"])
    parser.add_argument("--serve", action="store_true", help="then serve the pages, until Ctrl-C")
    parser.add_argument("--port", type=int, help="on this port")
    parser.add_argument("--settle", action="store_true", help="what Quarto runs at its end")
    args = parser.parse_args()
    if args.settle: return settle(Path(os.environ["QUARTO_PROJECT_OUTPUT_DIR"]))
    start, out = time.perf_counter(), args.out.resolve()
    build(out)
    count = len(list(out.glob("*.html")))
    print(f"{count} pages in {out} after {time.perf_counter() - start:.1f} s")
    _, faults = links.check(out)
    for fault in faults: print(fault, file=sys.stderr)
    if args.serve: serve(out, args.port)
    elif faults: sys.exit(1)


if __name__ == "__main__": main()
