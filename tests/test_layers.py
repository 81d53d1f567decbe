"""The arrows between the package's parts, and the compute core's independence of Ray."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "influcoder_ray"
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"][
    "importlinter"
]["contracts"]
(LAYERS,) = (contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")
# What may not reach Ray even through another module is the compute core: the parts that run without it.
CORE: list[str] = [
    module
    for contract in CONTRACTS
    if contract.get("forbidden_modules") == ["ray"] and not contract.get("allow_indirect_imports")
    for module in contract["source_modules"]
]

# Imports each package named on the command line, and all modules below it, in an interpreter where
# `import ray` fails; prints a line for each module that cannot be imported, and exits with 1 if there is any.
# The kernels alone may want Triton: only builds of torch for GPUs bring it, and nothing else imports them.
IMPORT_WITHOUT_RAY = """
import importlib, pkgutil, sys

sys.modules["ray"] = None
failed = []
pending = sys.argv[1:]
while pending:
    name = pending.pop()
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        wanted = error.name if isinstance(error, ModuleNotFoundError) else None
        kernels = ("influcoder_ray.gradients.kernels", "influcoder_ray.gradients.pointwise_kernels")
        if name in kernels and wanted == "triton":
            continue
        failed.append(f"{name}: {type(error).__name__}: {error}")
        continue
    pending.extend(found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."))
print("\\n".join(failed))
sys.exit(bool(failed))
"""


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package and the pyproject.toml that lie in `folder`."""
    command = "import sys, importlinter.cli as c; sys.exit(c.lint_imports(no_cache=True, no_logo=True))"
    return subprocess.run(
        [sys.executable, "-c", command], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def import_without_ray(modules: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Import `modules` and all that lies below them from `folder`, with Ray blocked."""
    return subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT_RAY, *modules],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """A copy of the package and its contracts, free to be broken."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_keep_to_the_layers() -> None:
    """Prevents an import upwards, or of Ray from the compute core, from going unnoticed."""
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("errors.py", "import ray", "Only stages import Ray"),
        ("spec.py", "def late() -> None:\n    import ray.data", "Only stages import Ray"),
        ("errors.py", "import influcoder_ray.stages", "Arrows go down only"),
        ("tables/__init__.py", "import influcoder_ray.gradients", "Arrows go down only"),
        ("gradients/__init__.py", "import influcoder_ray.encoder", "Arrows go down only"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(
    copied_package: Path, module: str, statement: str, contract: str
) -> None:
    """Prevents contracts that look right and catch nothing, such as one that names no module."""
    with (copied_package / PACKAGE.name / module).open("a", encoding="utf-8") as source:
        source.write(f"\n{statement}\n")
    result = lint_imports(copied_package)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(rf"^{contract}.* BROKEN\b", result.stdout, re.MULTILINE), result.stdout


def test_every_part_of_the_package_has_its_layer() -> None:
    """Prevents a new module beside the layers, which no contract would look at."""
    parts = {
        f"{PACKAGE.name}.{path.stem}"
        for path in PACKAGE.iterdir()
        if (path / "__init__.py").exists() or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert parts == {name for layer in LAYERS for name in re.split(r"\s*[|:]\s*", layer)}


def test_the_compute_core_imports_where_ray_is_missing() -> None:
    """Prevents a hidden need of Ray, also through a third package, which import-linter cannot see."""
    assert "influcoder_ray.gradients" in CORE
    result = import_without_ray(CORE, ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_core_module_that_needs_ray_is_found(tmp_path: Path) -> None:
    """Prevents the check above from passing because it walked past nested modules or let Ray in."""
    nested = tmp_path / "outer" / "inner"
    nested.mkdir(parents=True)
    (nested.parent / "__init__.py").touch()
    (nested / "__init__.py").touch()
    (nested / "sound.py").write_text("import json\n", "utf-8")
    (nested / "unsound.py").write_text("import ray.data\n", "utf-8")
    (nested / "wanting.py").write_text("raise ModuleNotFoundError('none here', name='triton')\n", "utf-8")
    result = import_without_ray(["outer"], tmp_path)
    assert result.returncode == 1
    assert re.findall(r"^(\S+): ModuleNotFoundError", result.stdout, re.MULTILINE) == [
        "outer.inner.wanting",
        "outer.inner.unsound",
    ]
