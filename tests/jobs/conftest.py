"""Job scripts lie beside each other in jobs/, which Python puts on its path when it runs one."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# At the end: their names are plain words, which must not hide a library's.
sys.path.append(str(Path(__file__).resolve().parents[2] / "jobs"))


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """A benchmark collects garbage before each pass: it need not look through all that is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
