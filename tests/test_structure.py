"""The house rules that a machine can check: who may import whom, what is packaged, how long a file may be."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"occ_jax": ROOT / "occ_jax", "occ_llm": ROOT / "llm", "occ_toy": ROOT / "toy"}
SOURCES = sorted(file for folder in FOLDERS.values() for file in folder.rglob("*.py"))

FOUNDATION = {"_pytree", "errors", "numerics"}
PARTS = {"transforms", "quantization", "entropy", "decomposition", "metrics"}
FRAMEWORKS = {"flax", "transformers", "tokenizers", "huggingface_hub", "gguf", "torch", "occ_llm", "occ_toy"}


def imported_modules(file: Path) -> set[str]:
    """Absolute names of everything a file imports."""
    package = file.relative_to(ROOT).with_suffix("").parts
    package = ({"llm": "occ_llm", "toy": "occ_toy"}.get(package[0], package[0]), *package[1:])
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    parts, names = file.relative_to(ROOT).parts, imported_modules(file)
    apart = {"llm": "occ_toy", "toy": "occ_llm"}
    if parts[0] in apart:
        assert not any(name.split(".")[0] == apart[parts[0]] for name in names)
        return
    assert not FRAMEWORKS & {name.split(".")[0] for name in names}, "the core knows no model and no framework but JAX"
    uses_optax = any(name.split(".")[0] == "optax" for name in names)
    assert not uses_optax or parts[1] == "learned", "optax is an extra, which training alone needs"
    inner = {name.split(".")[1] for name in names if name.startswith("occ_jax.")}
    own = Path(parts[1]).stem
    if own in FOUNDATION:
        assert inner <= FOUNDATION
    elif own in PARTS:
        assert inner <= FOUNDATION | PARTS, "parts do not know files or training"
    elif own == "codec":
        assert inner <= FOUNDATION | PARTS | {"codec"}, "files do not know training"


def test_every_package_is_installed():
    found = {
        ".".join((name, *file.parent.relative_to(folder).parts))
        for name, folder in FOLDERS.items()
        for file in folder.rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_one_idea_per_file(file):
    assert len(file.read_text().splitlines()) <= 320


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_left_open(file):
    text = file.read_text()
    assert not any(word in text for word in ("TODO", "FIXME", "XXX", "raise NotImplementedError"))
    assert "import pickle" not in text
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = [node.func.id for node in calls if isinstance(node.func, ast.Name)]
    assert not {"eval", "exec", "print"} & set(names)
