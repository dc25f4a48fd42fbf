"""The site, as readers get it: built and served by `tools/site.py`, looked at from outside."""

import html
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("nbdev", reason="the site is built with the tools of the dev extra")
pytest.importorskip("smalldocs", reason="the site is built with the tools of the dev extra")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[!_.]*.ipynb"))
SIDEBAR = ROOT / "nbs/sidebar.yml"
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def name(notebook: Path) -> str:
    """What nbdev calls the page of a notebook."""
    return re.sub(r"^\d+\w*?_", "", notebook.stem)


class Served:
    """A site that is built, and served until the tests are over."""

    def __init__(self, folder: Path):
        self.folder, self.sidebar_before = folder, SIDEBAR.read_text(encoding="utf-8")
        build = [sys.executable, ROOT / "tools/site.py", "--out", folder, "--serve", "--port", "0"]
        self.process = subprocess.Popen(build, stdout=subprocess.PIPE, text=True)
        lines = iter(self.process.stdout.readline, "")
        self.address = next((line.strip() for line in lines if line.startswith("http://")), None)
        assert self.address, "the build failed"

    def page(self, notebook: Path) -> str:
        return (self.folder / f"{name(notebook)}.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("site"))
    yield served
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0, "Ctrl-C does not end the server cleanly"


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools" / tool, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def markdown(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def test_pages_are_those_of_the_notebooks(site):
    assert len(list(site.folder.glob("*.html"))) == len(NOTEBOOKS)


def test_all_links_lead_somewhere_and_nothing_is_fetched_from_elsewhere(site):
    checked = run("links.py", site.folder)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_title(site, notebook):
    title = next(text[2:].splitlines()[0] for text in markdown(notebook) if text.startswith("# "))
    page = html.unescape(site.page(notebook))
    assert f"<title>{title}" in page
    assert f'<h1 class="title">{title}</h1>' in page


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_displayed_formulas_survive(site, notebook):
    written = [tex for text in markdown(notebook) for tex in FORMULA.findall(CODE.sub("", text))]
    display = re.compile(r'<span class="math display">\\\[(.*?)\\\]</span>', re.DOTALL)
    shown = display.findall(site.page(notebook))
    assert [html.unescape(tex).split() for tex in shown] == [tex.split() for tex in written]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_pictures_say_what_they_show_and_keep_their_place(site, notebook):
    for picture in re.findall(r"<img [^>]*>", site.page(notebook)):
        assert re.search(r' alt="[^"]+"', picture), picture[:120]
        assert re.search(r' width="\d+" height="\d+"', picture), picture[:120]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_source_is_linked_before_there_is_a_home(site, notebook):
    if re.search(r"^git_url *= *\S", (ROOT / "settings.ini").read_text(), re.MULTILINE):
        pytest.skip("git_url is set")
    assert ">source</a>" not in site.page(notebook)


def test_sidebar_is_in_reading_order(site):
    start = site.page(ROOT / "nbs/index.ipynb")
    shown = re.findall(r'<a href="([\w-]+)\.html" class="sidebar-item-text', start)
    assert shown == ["index", *(name(path) for path in NOTEBOOKS if path.stem != "index")]


def test_sidebar_file_was_current(site):
    assert SIDEBAR.read_text(encoding="utf-8") == site.sidebar_before, "it was stale"


def test_readme_is_current():
    checked = run("readme.py", "--check")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("file, kind", [
    ("styles.css", "text/css"), ("assets/page.js", "text/javascript"),
    ("search.json", "application/json"),
    ("assets/katex/fonts/KaTeX_Main-Regular.woff2", "font/woff2"),
])
def test_served_types(site, file, kind):
    with urllib.request.urlopen(site.address + file) as answer:
        assert answer.headers.get_content_type() == kind


@pytest.mark.parametrize("planted, fault", [
    ('<a href="nowhere.html">', "nowhere.html does not exist"),
    ('<a href="index.html#nowhere">', "index.html#nowhere names no anchor there"),
    ('<script src="https://a.org/x.js"></script>', "https://a.org/x.js is on another host"),
    ('<img src="nothing.png" alt="">', "nothing.png does not exist"),
])
def test_planted_faults_are_found(site, tmp_path, planted, fault):
    copy = shutil.copytree(site.folder, tmp_path / "copy")
    page = copy / "index.html"
    page.write_text(page.read_text(encoding="utf-8") + planted, encoding="utf-8")
    checked = run("links.py", copy)
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [f"index.html: {fault}"]
