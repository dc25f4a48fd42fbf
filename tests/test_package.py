"""The package as an importer sees it: names, types, weight, metadata."""

import ast
import configparser
import re
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


def test_a_type_checker_follows_every_method(tmp_path):
    """Also those that a chapter adds to a class later, cell by cell."""
    user = tmp_path / "user.py"
    user.write_text("import torch\n"
                    "from vae_notes import VAE, MLPDecoder, MLPEncoder\n"
                    "model = VAE(MLPEncoder(4, 2), MLPDecoder(2, 4))\n"
                    "bound: torch.Tensor = model.elbo(torch.zeros(2, 4)).value\n"
                    "model.sample(3, wrong=1)\n"
                    "model.no_such_method()\n")
    check = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), str(user)]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    lines = re.findall(r"user\.py:(\d+): error", run.stdout)
    assert lines == ["5", "6"], run.stdout


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


def is_private(node: ast.stmt) -> bool:
    """Whether a name is, or the class that a method is patched into."""
    if node.name == "__init__": return False
    owner = node.args.args[:1] if isinstance(node, ast.FunctionDef) else []
    patched = owner and owner[0].arg == "self" and isinstance(owner[0].annotation, ast.Name) and owner[0].annotation.id
    return node.name.startswith("_") or node.name == "extra_repr" or bool(patched) and patched.startswith("_")


def public(body: list[ast.stmt]) -> list[ast.stmt]:
    """The public classes and functions, and the public methods of those classes."""
    named = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not is_private(n)]
    classes = [n for n in named if isinstance(n, ast.ClassDef) and not is_autograd(n)]
    return named + [m for n in classes for m in public(n.body)]


def is_autograd(node: ast.ClassDef) -> bool:
    """Whether torch calls its methods, not a user."""
    return any(ast.unparse(base).endswith("Function") for base in node.bases)


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.stem)
def test_public_objects_are_documented_and_typed(path):
    """A docstring each, and a type and a comment for every parameter."""
    source = path.read_text()
    lines, missing = source.splitlines(), []
    for node in public(ast.parse(source).body):
        if not ast.get_docstring(node) and node.name not in ("__init__", "forward"): missing.append(f"{node.name}: docstring")
        if isinstance(node, ast.ClassDef): continue
        for a in [*node.args.args, *node.args.kwonlyargs]:
            if a.arg in ("self", "cls"): continue
            if a.annotation is None: missing.append(f"{node.name}({a.arg}): type")
            if "#" not in lines[a.lineno - 1] and not ast.unparse(a.annotation or a).startswith("Param("): missing.append(f"{node.name}({a.arg}): comment")
    assert not missing


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.stem)
def test_a_module_imports_only_earlier_chapters(path):
    order = {nb_module(p): p.name for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    imports = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 1]
    assert all(order[m] < order[path.stem] for m in imports if m)  # None: the package's version


def nb_module(notebook: Path) -> str:
    """The module that a notebook exports: its name without the number."""
    return notebook.stem.split("_", 1)[1]
