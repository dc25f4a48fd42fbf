#!/usr/bin/env python
"""Are the outputs stored in the notebooks those that their code prints today?

    python tools/outputs.py check [NOTEBOOK ...]   run, compare, exit 1 if not
    python tools/outputs.py write [NOTEBOOK ...]   run, store what came out

Words must be equal and numbers close: within TOLERANCE of each other, or
within what a cell asks for by `#| tolerance: 0.05`. A cell that prints what no
run repeats, a duration say, is exempt by `#| volatile: true`. Cells flagged
`#| slow` or `#| notest` run only with --slow; otherwise they keep their
outputs. Pictures are not compared."""

import argparse
import multiprocessing
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
TOLERANCE = 1e-3  # of the larger number; another processor rounds differently
ABSOLUTE = 1e-7   # below this, numbers are rounding noise
SLOW = {"slow", "notest"}
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w])")


def directives(source: str) -> dict[str, str]:
    """The `#| name: value` lines at the head of a cell."""
    lines = re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", source, re.MULTILINE)
    return dict(lines)


def text_of(outputs: list) -> str:
    """What a reader sees of a cell's outputs, as text."""
    parts = []
    for out in outputs:
        if out["output_type"] == "stream" and out["name"] == "stdout":
            parts.append("".join(out["text"]))
        elif out["output_type"] == "error":
            parts.append(f"{out['ename']}: {out['evalue']}")
        elif "data" in out and not any(k.startswith("image/") for k in out["data"]):
            parts.append("".join(out["data"].get("text/plain", "")))
    return "\n".join(parts)


def same(stored: str, fresh: str, tolerance: float) -> bool:
    """Whether two texts have equal words and close numbers."""
    words = [" ".join(re.sub(r"[\[\]\s]+", " ", NUMBER.sub("#", t)).split())
             for t in (stored, fresh)]
    if words[0] != words[1]: return False
    pairs = zip(*(map(float, NUMBER.findall(t)) for t in (stored, fresh)))
    return all(abs(a - b) <= max(tolerance * max(abs(a), abs(b)), ABSOLUTE)
               for a, b in pairs)


def run(path: Path, slow: bool) -> tuple[dict, list[str]]:
    """Execute a notebook; return it with fresh outputs, and the differences."""
    os.environ.pop("IN_TEST", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # side by side, threads would wait for each other
    os.chdir(path.parent)
    sys.path.insert(0, str(ROOT))
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    notebook, shell, differences = read_nb(path), CaptureShell(path), []
    for cell in notebook.cells:
        if cell.cell_type != "code" or "nbdev_export(" in cell.source: continue
        flags = directives(cell.source)
        if not slow and SLOW & flags.keys() or flags.get("eval") == "false": continue
        stored = text_of(cell.get("outputs", []))
        cell.outputs = []
        shell.cell(cell)
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        if shell.exc:
            differences.append(f"cell {cell.idx_} raised:\n{shell.prettytb(fname=path)}")
            break
        fresh = text_of(cell.outputs)
        close = same(stored, fresh, float(flags.get("tolerance", TOLERANCE)))
        if "volatile" not in flags and not close:
            differences.append(f"cell {cell.idx_} {cell.source.strip()[:70]!r}\n"
                               f"    stored: {stored!r}\n    fresh:  {fresh!r}")
    return notebook, differences


def one(path: Path, write: bool, slow: bool) -> list[str]:
    notebook, differences = run(path, slow)
    if not write: return differences
    failed = [d for d in differences if " raised:" in d]
    if not failed:
        from execnb.nbio import write_nb
        from nbdev.clean import clean_nb
        clean_nb(notebook)
        write_nb(notebook, path)
    return failed


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("action", choices=["check", "write"])
    args.add_argument("notebooks", nargs="*", type=Path)
    args.add_argument("--slow", action="store_true", help="run the flagged cells too")
    args = args.parse_args()
    paths = [p.resolve() for p in args.notebooks] or sorted(NOTEBOOKS.glob("*.ipynb"))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(paths), os.cpu_count() or 1), context, max_tasks_per_child=1) as pool:
        jobs = [pool.submit(one, p, args.action == "write", args.slow) for p in paths]
        bad = {p.name: job.result() for p, job in zip(paths, jobs)}
    for name, differences in bad.items():
        for d in differences: print(f"{name}: {d}", file=sys.stderr)
    failed = sum(map(bool, bad.values()))
    print(f"stored outputs: {len(bad) - failed} notebooks fresh, {failed} not")
    sys.exit(bool(failed))


if __name__ == "__main__": main()
