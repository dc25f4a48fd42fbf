#!/usr/bin/env python
"""Write README.md from `nbs/index.ipynb`, the first page of the book.

    python tools/readme.py              write it
    python tools/readme.py --check      exit 1 if it is not what would be written

Prose stays as it is, code becomes fenced blocks, with what it printed below. Pictures go to
`readme_files/`. Links to chapters lead to the notebooks here or, once `doc_host` in
`settings.ini` says where the site is, to its pages."""

import argparse
import base64
import configparser
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PICTURES = Path("readme_files")
HIDDEN = {"hide", "default_exp", "export", "exporti"}  # nbdev leaves these cells out of its pages


def site() -> str:
    """The address of the site with a slash at its end, or nothing while there is none."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    settings = parser["DEFAULT"]
    if not settings["doc_host"]: return ""
    return (settings["doc_host"] + settings["doc_baseurl"]).rstrip("/") + "/"


def split(source: str) -> tuple[dict[str, Any], str]:
    """The `#|` options of a code cell, and its code."""
    lines = re.findall(r"^#\|\s*([\w-]+)(?::[ \t]*(.*))?", source, re.MULTILINE)
    options = {name: yaml.safe_load(value) for name, value in lines}
    return options, re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip()


def prose(markdown: str, home: str) -> str:
    """Markdown whose links work from the top of the repository."""
    def target(link: re.Match) -> str:
        if not home: return f"](nbs/{link[1]}.ipynb)"
        page = re.sub(r"^\d+[a-z]?_", "", link[1])
        return f"]({home}{page}.html{link[2] or ''})"
    markdown = re.sub(r"(?<=\))\{[^}\n]*\}", "", markdown)  # the width of a picture, say
    markdown = re.sub(r"\]\((assets/[^)\s]+)\)", r"](nbs/\1)", markdown)
    return re.sub(r"\]\(([\w-]+)\.ipynb(#[^)\s]*)?\)", target, markdown).strip()


def indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.rstrip().splitlines())


def readme(notebook: dict, home: str) -> tuple[str, dict[Path, bytes]]:
    """The text of README.md, and the pictures it shows."""
    parts: list[str] = []
    pictures: dict[Path, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": parts.append(prose(source, home))
        if cell["cell_type"] != "code": continue
        options, code = split(source)
        if HIDDEN & options.keys() or options.get("include") is False: continue
        if code and options.get("echo") is not False: parts.append(f"```python\n{code}\n```")
        if options.get("output") is False: continue
        for output in cell["outputs"]:
            data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
            if output.get("name") == "stdout": parts.append(indented("".join(output["text"])))
            elif "image/png" in data:
                file = PICTURES / f"{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![{options.get('fig-alt', '')}]({file.as_posix()})")
                parts.append(prose(options.get("fig-cap", ""), home))
            elif "text/markdown" in data: parts.append(prose(data["text/markdown"], home))
            elif "text/plain" in data: parts.append(indented(data["text/plain"]))
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    notebook = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    text, pictures = readme(notebook, site())
    wanted = {Path("README.md"): text.encode(), **pictures}
    present = {file.relative_to(ROOT): file.read_bytes()
               for file in [*ROOT.glob("README.md"), *(ROOT / PICTURES).glob("*")]}
    stale = sorted(f for f in wanted.keys() | present.keys() if wanted.get(f) != present.get(f))
    if check:
        for file in stale: print(f"{file} is not what nbs/index.ipynb says: run tools/readme.py")
        sys.exit(bool(stale))
    for file in stale:
        (ROOT / file).unlink(missing_ok=True)
        if file not in wanted: continue
        (ROOT / file).parent.mkdir(exist_ok=True)
        (ROOT / file).write_bytes(wanted[file])
    print(f"README.md: {len(text)} characters, {len(pictures)} pictures, {len(stale)} files new")


if __name__ == "__main__": main()
