"""A run killed at any moment goes on to the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_notes.files import read_state

ROOT = Path(__file__).resolve().parent.parent


def differences(a, b, where="") -> list[str]:
    """Where two nests differ in a single bit, apart from how long it took."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys(): return [f"{where}: {a.keys() ^ b.keys()}"]
        return [d for k in a if k != "seconds" for d in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        if len(a) != len(b): return [f"{where}: lengths {len(a)} and {len(b)}"]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor): same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, np.ndarray): same = isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    else: same = type(a) is type(b) and (a == b or a != a and b != b)
    return [] if same else [f"{where}: {a!r:.60} and {b!r:.60}"]


@pytest.mark.parametrize("kind, kills", [("memory", 40), ("memmap", 12)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kind, kills):
    command = [sys.executable, str(ROOT / "tests/killed_runs.py"), str(tmp_path), str(kills), "0", kind]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=80)
    assert run.returncode == 0, run.stderr[-3000:]
    through, places = run.stdout.split(maxsplit=1)
    places = {tuple(place) for place in json.loads(places)} - {(0, 0), (1, 0)}
    assert len(places) >= kills / 3, places  # the kills hit all over the run
    through = int(through)
    whole = tmp_path / "whole"
    for i in range(1, through + 1):
        folder = tmp_path / f"killed-{i}"
        for name in ("checkpoint.safetensors", "model"):
            assert not differences(read_state(whole / name), read_state(folder / name), f"{i}/{name}")
        assert history(folder) == history(whole)


def history(folder: Path) -> list[list[str]]:
    """The lines of history.csv without their last column, the seconds."""
    return [line.split(",")[:-1] for line in (folder / "history.csv").read_text().splitlines()]


def test_the_comparison_sees_a_single_bit():
    a = {"x": torch.zeros(3), "y": [1, (2., None)]}
    assert not differences(a, {"x": torch.zeros(3), "y": [1, (2., None)]})
    assert differences(a, {"x": torch.tensor([0, 0, 1e-45]), "y": [1, (2., None)]})
    assert differences(a, {"x": torch.zeros(3), "y": [1, (2., 0)]})
