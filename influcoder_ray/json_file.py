"""What a command writes as JSON, where its user wants it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from influcoder_ray.errors import UserError


def refuse_folder(file: Path | None) -> None:
    """Refuse a file in a folder that is not there, before any work.

    Raises:
        UserError: naming it.
    """
    if file is not None and not file.parent.is_dir():
        raise UserError(f"--json: {file} lies in no folder that is there; give one")


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write plain values.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: {file} cannot be written ({error.strerror}); give another") from error
