"""The import direction of the design, held over the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("storage", "pipeline", "analysis", "jobs")
ALLOWED = {
    "storage": {"storage"},
    "pipeline": {"pipeline", "storage"},
    "analysis": {"analysis", "storage"},
    "jobs": {"jobs", "pipeline", "analysis", "storage"},
}
#: Libraries that only one package may know.
OWNERS = {
    "ray": {"jobs"},
    "torch": {"pipeline", "jobs"},
    "transformers": {"pipeline"},
    "accelerate": {"pipeline"},
    "dask": {"analysis"},
    "distributed": {"analysis"},
    "xarray": {"analysis"},
}


def imports(path: Path) -> Iterator[tuple[str, int, int]]:
    """Every imported module of a file: name, line, and level of a relative import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.lineno, node.level


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_there_is_something_to_check() -> None:
    assert {path.parent.name for path in sources()} >= set(PACKAGES)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module, line, level in imports(path):
        place = f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert level <= 1, f"{place}: relative imports stay inside the package"
        if level:
            continue
        top, *rest = module.split(".")
        assert top not in PACKAGES, f"{place}: write depthscope.{module}"
        if top == "depthscope":
            assert rest, f"{place}: name the package"
            assert rest[0] in ALLOWED[package], f"{place}: {package} may not know {rest[0]}"
            assert rest[0] != package, f"{place}: inside a package imports are relative"
        assert package in OWNERS.get(top, {package}), f"{place}: {package} may not know {top}"


def test_ray_is_known_to_its_engine_alone() -> None:
    knowing = {
        path.name
        for path in sources()
        for module, _, level in imports(path)
        if not level and module.split(".")[0] == "ray"
    }
    assert "ray_pool.py" in knowing
    assert all(name.startswith("ray_") for name in knowing), knowing


def test_no_module_is_called_utils() -> None:
    assert not [path for path in sources() if path.stem in {"utils", "util", "helpers", "common"}]
