"""The check of stored outputs must notice what it is there to notice."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import outputs


@pytest.mark.parametrize("stored, fresh", [
    ("loss 1.2345", "loss 1.2346"),
    ("[1.0,  2.0]", "[1., 2.]"),
    ("tensor([ 0.50, -1.20])", "tensor([0.5001, -1.2000])"),
    ("1e-12", "3e-13"),
    ("", ""),
])
def test_rounding_passes(stored, fresh):
    assert outputs.same(stored, fresh, 1e-3)


@pytest.mark.parametrize("stored, fresh", [
    ("loss 1.2345", "loss 1.2445"),
    ("loss 1.2345", "cost 1.2345"),
    ("1 2 3", "1 2"),
    ("1.0", "-1.0"),
    ("1.0", "nan"),
    ("True", "False"),
    ("v1", "v2"),
    ("12 rows", ""),
])
def test_a_change_fails(stored, fresh):
    assert not outputs.same(stored, fresh, 1e-3)


def notebook(path: Path, *cells: tuple[str, str]) -> Path:
    """A notebook with these sources and stored results."""
    def cell(source, stored):
        out = [dict(output_type="execute_result", data={"text/plain": [stored]}, metadata={}, execution_count=None)] if stored else []
        return dict(cell_type="code", id=f"c{hash(source) % 10**6}", metadata={}, execution_count=None, source=[source], outputs=out)
    content = dict(cells=[cell(*c) for c in cells], metadata={}, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(content))
    return path


def check(path: Path) -> int:
    import subprocess
    return subprocess.run([sys.executable, outputs.__file__, "check", str(path)], capture_output=True).returncode


def test_a_true_notebook_is_fresh(tmp_path):
    cells = [("1 + 1", "2"), ("#| volatile: true\nimport time; time.time()", "0.0"),
             ("#| tolerance: 0.5\n1.4", "1.0"), ("#| slow\n2 + 2", "5")]
    assert check(notebook(tmp_path / "true.ipynb", *cells)) == 0


@pytest.mark.parametrize("cell", [("1 + 1", "3"), ("1 + 1", ""), ("1.4", "1.0"), ("1 / 0", "")])
def test_a_stale_or_failing_notebook_is_not(tmp_path, cell):
    assert check(notebook(tmp_path / "stale.ipynb", cell)) == 1
