"""How much memory this machine still has to give."""

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# A container's limit, what it uses, and what of that are files that can be dropped: cgroup v2, then v1.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def free_memory_bytes() -> int:
    """Memory that can be had without swapping: the machine's, or less where a container is bound to less.

    Where the system does not tell what is free, all that the machine has.
    """
    if not _MEMINFO.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([_fields(_MEMINFO)["MemAvailable:"] * 1024, *_left_in_containers()])


def _left_in_containers() -> list[int]:
    left = []
    for folder, limit, used, droppable in _CGROUPS:
        bound = (folder / limit).read_text().strip() if (folder / limit).exists() else "max"
        if bound != "max":
            in_use = int((folder / used).read_text()) - _fields(folder / "memory.stat")[droppable]
            left.append(max(0, int(bound) - in_use))
    return left


def _fields(file: Path) -> dict[str, int]:
    """The number after each first word of a file's lines."""
    return {parts[0]: int(parts[1]) for line in file.read_text().splitlines() if (parts := line.split())}
