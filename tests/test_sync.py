"""What is generated is up to date: modules, cleaned notebooks, README."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ["vae_notes", "nbs", "README.md", "pyproject.toml", "settings.ini"]
SKIP = shutil.ignore_patterns(".git", ".venv", "_docs", "_proc", "build", "*.egg-info", "__pycache__", ".ipynb_checkpoints")


def contents(root: Path) -> dict[str, bytes]:
    """Every generated or generating file under `root`, by its relative path."""
    files = [f for name in GENERATED for f in ([root / name] if (root / name).is_file() else (root / name).rglob("*"))]
    return {str(f.relative_to(root)): f.read_bytes() for f in files
            if f.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(f.parts) and f.name != ".last_checked"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project in which everything generated is made again."""
    there = tmp_path_factory.mktemp("sync") / "vae_notes_project"
    shutil.copytree(ROOT, there, symlinks=True, ignore=SKIP)
    bin = Path(sys.executable).parent
    env = {**os.environ, "PYTHONPATH": str(there)}
    for command in ([bin / "nbdev_export"], [sys.executable, "tools/stubs.py"],
                    [bin / "nbdev_clean"], [sys.executable, "tools/readme.py"]):
        subprocess.run(list(map(str, command)), cwd=there, env=env, check=True, capture_output=True)
    return there


def test_everything_generated_is_up_to_date(copy):
    here, there = contents(ROOT), contents(copy)
    differs = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    assert not differs, f"run `make prepare` and commit: {differs}"


def test_the_check_notices_a_hand_edited_module(copy):
    module = copy / "vae_notes" / "kl.py"
    module.write_text(module.read_text() + "\n# edited by hand\n")
    assert contents(copy) != contents(ROOT)
