"""What is installed: every package that is imported is declared, and types reach the user."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import superself

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

PACKAGE = Path(superself.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
NAMES = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}
NAMES |= {"faiss": "faiss-cpu", "google": "protobuf", "umap": "umap-learn"}


def required(requirements):
    return {re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_every_imported_package_is_declared():
    modules = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imported(ast.parse(path.read_text()))}
    others = modules - set(sys.stdlib_module_names) - {"superself"}
    found = {NAMES.get(name, name).lower().replace("_", "-") for name in others}
    extras = set().union(*(required(names) for names in PROJECT["optional-dependencies"].values()))
    assert found <= required(PROJECT["dependencies"]) | extras


def test_elasticdeform_is_needed_by_no_default_installation():
    extras = PROJECT["optional-dependencies"]
    assert "elasticdeform" not in required(PROJECT["dependencies"])
    assert [name for name, packages in extras.items() if "elasticdeform" in required(packages)] == ["elastic"]


def test_types_are_part_of_the_package():
    assert (PACKAGE / "py.typed").is_file()
    data = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["superself"]


def test_heavy_packages_are_imported_on_use():
    heavy = ("sklearn", "skimage", "scipy", "lightning_fabric", "elasticdeform", "matplotlib", "tifffile")
    code = f"import sys, superself; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    assert (
        subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
