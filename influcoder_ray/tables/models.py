"""Model folders: on this machine, on an object store, or on the Hugging Face hub by name."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from influcoder_ray.errors import UserError
from influcoder_ray.tables.place import Place

# What describes a model, its own code among it, and what it is made of.
_SMALL, _WEIGHTS = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py"), ".safetensors"


def local_model_folder(path: str, *, setting: str, weights: bool = True, marker: str = "config.json") -> str:
    """A folder on this machine with the model at `path`, fetched once a machine if it lies elsewhere.

    Args:
        path: a local folder, a URI that fsspec opens, or a hub's `owner/name`.
        setting: the setting that holds `path`, for the error's first words.
        weights: whether they are needed; a folder that lies elsewhere is else fetched without them.
        marker: the file without which a folder that lies elsewhere is no model.

    Raises:
        UserError: there is no such folder, and no such model where it points.
    """
    if "://" in path:
        return str(_fetched(Place(path), setting, weights, marker))
    if Path(path).exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = [f"*{ending}" for ending in (*_SMALL, *([_WEIGHTS] if weights else []))]
        return str(snapshot_download(path, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{setting}: {path} is no folder here and could not be had from the hub "
            f"({str(error).splitlines()[0]}); give a folder in Hugging Face layout"
        ) from error


def _fetched(place: Place, setting: str, weights: bool, marker: str) -> Path:
    """A copy of a remote folder in this machine's temporary space, named by the versions that it holds."""
    entries = [e for e in place.files() if weights or e.relative.endswith(_SMALL)]
    if not any(e.relative == marker for e in entries):
        raise UserError(f"{setting}: {place} holds no {marker}; give a folder in Hugging Face layout")
    name = hashlib.sha256(repr((place.uri, entries)).encode()).hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"influcoder-models-{os.getuid()}" / name
    if not target.exists():
        target.parent.mkdir(mode=0o700, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent))
        for entry in entries:
            (partial / entry.relative).parent.mkdir(parents=True, exist_ok=True)
            (place / entry.relative).copy_to(partial / entry.relative)
        try:
            partial.rename(target)
        except OSError:
            # Another process of this machine was first: its copy is as good.
            shutil.rmtree(partial)
    return target
