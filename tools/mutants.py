#!/usr/bin/env python
"""How strong are a chapter's tests? Spoil its code, a spot at a time, and see.

    python tools/mutants.py nbs/02_kl.ipynb                      the notebook's own checks
    python tools/mutants.py nbs/02_kl.ipynb tests/test_kl.py     and these, for what survives
    python tools/mutants.py nbs/02_kl.ipynb --sample 50          only 50 of the spots

Each mutant changes one spot of one exported cell: a comparison, an operator, a
number, a condition. It is killed if a later cell of the notebook fails, or one
of the test files. The process forks where the spoilt cell stands, so the cells
before it run once. Needs a system with fork; not part of `make test`."""

import argparse
import ast
import contextlib
import copy
import json
import os
import random
import re
import signal
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.update(OMP_NUM_THREADS="1", IN_TEST="1", MPLBACKEND="agg")
os.environ.setdefault("PYTHONWARNINGS", "ignore")

SWAPS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
         ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
         ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.And: ast.Or, ast.Or: ast.And}


def swapped(op):
    return SWAPS[type(op)]() if type(op) in SWAPS else None


def changes(node):
    """What to do to a node to spoil it: (words, function of its copy)."""
    if isinstance(node, ast.Compare) and swapped(node.ops[0]):
        yield "comparison", lambda n: n.ops.__setitem__(0, swapped(n.ops[0]))
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and swapped(node.op):
        yield "operator", lambda n: setattr(n, "op", swapped(n.op))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign", lambda n: setattr(n, "op", ast.UAdd())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", lambda n: setattr(n, "operand", ast.UnaryOp(ast.Not(), n.operand))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "number", lambda n: setattr(n, "value", n.value + 1)
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        yield "truth", lambda n: setattr(n, "value", not n.value)
    if isinstance(node, (ast.If, ast.IfExp)):
        yield "condition", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))


def spots(tree):
    """Every node that runs: neither annotations nor docstrings."""
    skipped = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST): skipped.update(map(id, ast.walk(part)))
    return [n for n in ast.walk(tree) if id(n) not in skipped]


def mutants(source):
    """(line, words, spoilt source) for every spot of a cell."""
    tree = ast.parse(source)
    for i, node in enumerate(spots(tree)):
        for j, (words, _) in enumerate(changes(node)):
            spoilt = copy.deepcopy(tree)
            twin = spots(spoilt)[i]
            list(changes(twin))[j][1](twin)
            yield node.lineno, words, ast.unparse(ast.fix_missing_locations(spoilt))


def cells(notebook):
    """(source, exported) of each cell that a test would run."""
    kept = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        flags = re.findall(r"^#\| *(\S.*)", source, re.M)
        if cell["cell_type"] != "code" or not source.strip(): continue
        if any(f in ("notest", "slow") or f.startswith("default_exp") for f in flags): continue
        if "nbdev_export" in source or re.search(r"^[%!]", source, re.M): continue
        kept.append((source, any(re.match(r"exports?i?\b", f) for f in flags)))
    return kept


def install(name, path, original="", spoilt=""):
    """The chapter's module, with one cell spoilt, as later imports see it."""
    body = "\n".join(line for line in original.splitlines() if not line.startswith("#|")).strip("\n")
    text = path.read_text(encoding="utf-8").replace("from .", "from vae_notes.")
    if body: text = text.replace(body.replace("from .", "from vae_notes."), spoilt)
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    setattr(sys.modules["vae_notes"], name.rpartition(".")[2], module)


def run_rest(space, sources):
    for source in sources: exec(compile(source, "cell", "exec"), space)


def run_tests(files, module, path, original, spoilt):
    import pytest
    os.chdir(ROOT)
    install(module, path, original, spoilt)
    if pytest.main(["-x", "-q", "-p", "no:cacheprovider", *map(str, files)]): raise AssertionError


def dies(work, seconds):
    """Whether the work fails, in a process of its own."""
    child = os.fork()
    if not child:
        with contextlib.suppress(Exception):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.alarm(seconds)
            work()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] != 0


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("notebook", type=Path)
    args.add_argument("tests", nargs="*", type=Path, help="test files, for what the notebook lets live")
    args.add_argument("--sample", type=int, help="only so many spots, drawn with a fixed seed")
    args.add_argument("--seconds", type=int, default=300, help="a mutant that runs longer counts as killed")
    args = args.parse_args()
    import matplotlib.pyplot  # noqa: F401  before the forks, which then need not
    import numpy  # noqa: F401
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    files = [f.resolve() for f in args.tests]
    notebook = args.notebook.resolve()
    short = re.sub(r"^\d+[a-z]?_", "", notebook.stem)
    module, path = f"vae_notes.{short}", ROOT / "vae_notes" / f"{short}.py"
    rows = cells(notebook)
    work = [(i, *m) for i, (source, exported) in enumerate(rows) if exported for m in mutants(source)]
    if args.sample and args.sample < len(work): work = sorted(random.Random(0).sample(work, args.sample))
    os.chdir(notebook.parent)
    space, killed, start = {"__name__": "__main__"}, 0, time.time()
    for i, (source, _) in enumerate(rows):
        for _, line, words, spoilt in (w for w in work if w[0] == i):
            rest = [spoilt, *(s for s, _ in rows[i + 1:])]
            dead = dies(lambda: run_rest(space, rest), args.seconds)
            if not dead and files:
                dead = dies(lambda: run_tests(files, module, path, source, spoilt), args.seconds)
            killed += dead
            if not dead:
                was = source.splitlines()[line - 1].strip()
                print(f"lives: {words} in `{was}`", flush=True)
        exec(compile(source, f"cell {i}", "exec"), space)
    print(f"{notebook.name}: {killed} of {len(work)} mutants killed, {killed / max(len(work), 1):.0%}, "
          f"{time.time() - start:.0f} s")


if __name__ == "__main__": main()
