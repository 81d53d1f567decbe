"""Free memory is what this process can really have, in a container as well."""

from pathlib import Path

import pytest

from influcoder_ray.gradients import free_memory
from influcoder_ray.gradients.free_memory import free_memory_bytes


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1,000 KiB available and no container."""
    (tmp_path / "meminfo").write_text("MemTotal:    4000 kB\nMemAvailable:   1000 kB\nHugePages_Total:   0\n")
    monkeypatch.setattr(free_memory, "_MEMINFO", tmp_path / "meminfo")
    moved = tuple((tmp_path / f"cgroup{i}", *names) for i, (_, *names) in enumerate(free_memory._CGROUPS))
    monkeypatch.setattr(free_memory, "_CGROUPS", moved)
    return tmp_path


def contain(folder: Path, version: int, limit: str, used: int, droppable: int) -> None:
    names = [("memory.max", "memory.current", "inactive_file")]
    names += [("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")]
    bound, current, files = names[version]
    cgroup = folder / f"cgroup{version}"
    cgroup.mkdir()
    (cgroup / bound).write_text(f"{limit}\n")
    (cgroup / current).write_text(f"{used}\n")
    (cgroup / "memory.stat").write_text(f"anon 5\n{files} {droppable}\n")


def test_without_a_container_it_is_what_the_machine_can_give(machine: Path) -> None:
    """Prevents counting memory as free that others hold."""
    assert free_memory_bytes() == 1000 * 1024


@pytest.mark.parametrize("version", [0, 1])
def test_a_container_bounds_it_less_what_it_uses_but_for_files_that_can_be_dropped(
    machine: Path, version: int
) -> None:
    """Prevents a container from being killed for memory that only its machine has."""
    contain(machine, version, "500000", used=300_000, droppable=120_000)
    assert free_memory_bytes() == 320_000


@pytest.mark.parametrize(("version", "limit"), [(0, "max"), (1, "9223372036854771712")])
def test_a_container_without_a_bound_does_not_count(machine: Path, version: int, limit: str) -> None:
    """Prevents a crash, or nothing being free, where no limit is set."""
    contain(machine, version, limit, used=300_000, droppable=0)
    assert free_memory_bytes() == 1000 * 1024


def test_this_machine_has_some() -> None:
    """Prevents a reading of files that fits no real system."""
    assert 2**20 < free_memory_bytes() < 2**50
