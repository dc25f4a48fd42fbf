"""The package as an importer sees it: names, types, weight, metadata."""

import ast
import configparser
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vae_notes

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vae_notes"


def imported_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_every_main_name_is_there():
    for name in vae_notes.__all__:
        assert getattr(vae_notes, name).__name__ == name
        assert name in dir(vae_notes)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Vae'"):
        vae_notes.Vae


def test_type_checkers_see_the_same_names():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    names = {node.module: [a.asname for a in node.names] for node in stub.body if isinstance(node, ast.ImportFrom)}
    assert {m: sorted(n) for m, n in names.items()} == {m: sorted(n) for m, n in vae_notes._MODULES.items()}
    assert (PACKAGE / "py.typed").exists()


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "numpy", "pandas", "matplotlib", "fastcore"}
    assert not heavy & imported_by("import vae_notes")


def test_importing_a_model_adds_little_to_torch():
    beyond = imported_by("from vae_notes import VAE") - imported_by("import torch, numpy")
    assert not {"pandas", "matplotlib", "sklearn", "scipy", "IPython", "nbdev"} & beyond


def test_settings_and_metadata_agree():
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini")
    settings = settings["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert settings["version"] == vae_notes.__version__
    assert settings["lib_name"] == project["name"] == "vae_notes"
    assert settings["description"] == project["description"]
    assert project["requires-python"] == f">={settings['min_python']}"


def test_users_are_not_bound_to_the_pins_of_the_book():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [r for r in project["dependencies"] if "==" in r or "<" in r]


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.glob("[a-z]*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.stem)
def test_public_objects_are_documented_and_typed(path):
    """A docstring on every public function, class and method; an annotation and
    a comment on every parameter of a public function."""
    source = path.read_text()
    lines, missing = source.splitlines(), []
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"): continue
        inner = [n for n in node.body if isinstance(n, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
        if not ast.get_docstring(node): missing.append(f"{node.name}: docstring")
        for f in [node] * isinstance(node, ast.FunctionDef) + inner:
            if f.name.startswith("_") and f.name != "__init__": continue
            if f.name not in ("__init__", "forward") and not ast.get_docstring(f): missing.append(f"{node.name}.{f.name}: docstring")
            for a in [*f.args.args, *f.args.kwonlyargs]:
                if a.arg in ("self", "cls"): continue
                if a.annotation is None: missing.append(f"{node.name}.{f.name}({a.arg}): type")
                if "#" not in lines[a.lineno - 1]: missing.append(f"{node.name}.{f.name}({a.arg}): comment")
    assert not missing, missing


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.stem)
def test_a_module_imports_only_earlier_chapters(path):
    order = {nb_module(p): p.name for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    imports = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 1]
    assert all(order[m] < order[path.stem] for m in imports)


def nb_module(notebook: Path) -> str:
    """The module that a notebook exports: its name without the number."""
    return notebook.stem.split("_", 1)[1]
