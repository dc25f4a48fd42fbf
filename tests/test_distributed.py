"""Two processes under torchrun do what one does with twice the batch."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vae_notes.files import read_state
from vae_notes.training import seeded

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import two_processes  # noqa: E402


def torchrun(folder: Path, what: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "tests/two_processes.py"), str(folder), what]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("train")
    run = torchrun(folder, "train")
    assert run.returncode == 0, run.stderr[-3000:]
    assert sorted(p.name for p in (folder / "run").iterdir()) == ["checkpoint.safetensors", "history.csv"]
    return [read_state(folder / f"train-{rank}") for rank in range(2)]


def close(a: dict, b: dict, tolerance: float) -> None:
    for name in a["model"]:
        torch.testing.assert_close(a["model"][name], b["model"][name], rtol=0, atol=tolerance)
    for one, other in zip(a["rows"], b["rows"], strict=True):
        for name in one.keys() - {"seconds", "largest", "valid_largest"}:
            assert abs(one[name] - other[name]) <= tolerance * max(1, abs(one[name])), name


def test_both_processes_end_with_the_same(together):
    close(*together, tolerance=0.)


def test_two_processes_equal_one_with_twice_the_batch(together):
    with seeded(0): model = two_processes.Model()
    history = two_processes.train(32, 4, model)
    close(together[0], {"model": model.state_dict(), "rows": history.rows}, tolerance=2e-6)


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fail")
    start = time.monotonic()
    run = torchrun(folder, "fail")
    assert run.returncode != 0
    assert "the disk of this node is full" in run.stderr and "In epoch 2, batch 2, of (16, 5)" in run.stderr
    assert time.monotonic() - start < 60
    assert not list(folder.glob("fail-*"))
    return folder


def test_one_failure_ends_both_with_its_message(failed):
    state = read_state(failed / "run" / "checkpoint.safetensors")
    assert (state["epoch"], state["done"]) == (2, 0)  # between epochs


def test_they_go_on_to_the_same_bits(together, failed):
    run = torchrun(failed, "resume")
    assert run.returncode == 0, run.stderr[-3000:]
    for rank in range(2): close(read_state(failed / f"resume-{rank}"), together[rank], tolerance=0.)
