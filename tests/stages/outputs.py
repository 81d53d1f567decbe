"""What stage tests share beside fixtures."""

import hashlib
from pathlib import Path


def file_hashes(folder: Path | str) -> dict[str, str]:
    """The SHA-256 of every file below a folder that holds results, by relative path."""
    root = Path(folder)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
