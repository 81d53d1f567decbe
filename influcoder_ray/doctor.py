"""Doctor: what of this machine works, what does not, and what to do about it."""

import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from influcoder_ray.config import load_settings
from influcoder_ray.demo.weights import cache_folder
from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.pipeline import STAGES
from influcoder_ray.tables.place import Place

_PACKAGES = ("ray", "torch", "transformers", "peft", "pyarrow", "numpy", "s3fs")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, where it does not work, what to do."""

    name: str
    found: str
    remedy: str | None = None


def examine(console: Console, config: str | None = None) -> bool:
    """Look at everything and print a line for each; returns whether all of it works."""
    checks: list[Callable[[], list[Finding]]] = [_python, _packages, _devices, _files, _s3, _models, _ray]
    if config is not None:
        checks.append(lambda: _settings(config))
    sound = True
    for check in checks:
        for finding in check():
            mark = "ok  " if finding.remedy is None else "FAIL"
            console.print(
                f"{mark}  {finding.name}: {finding.found}", highlight=False, markup=False, soft_wrap=True
            )
            if finding.remedy is not None:
                sound = False
                console.print(f"      {finding.remedy}", highlight=False, markup=False, soft_wrap=True)
    return sound


def _python() -> list[Finding]:
    remedy = None if sys.version_info >= (3, 11) else "use Python 3.11 or later"
    return [Finding("Python", f"{platform.python_version()} on {platform.machine()}", remedy)]


def _packages() -> list[Finding]:
    findings = []
    for name in _PACKAGES:
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", f"pip install {name}"))
    return findings


def _devices() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [Finding("GPU", f"{card.name}, {card.total_memory / 2**30:.0f} GiB") for card in cards]
    cpus = (
        f"{len(os.sched_getaffinity(0))} CPUs"
        if hasattr(os, "sched_getaffinity")
        else f"{os.cpu_count()} CPUs"
    )
    if Path("/proc/driver/nvidia").exists():
        remedy = "this torch cannot use the GPU: install a CUDA build of torch that fits the driver"
        return [Finding("GPU", f"there is one, and torch {torch.__version__} does not see it", remedy)]
    return [Finding("GPU", f"none: models run on {cpus}, float32")]


def _files() -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder) / "probe"
        try:
            place.write_whole(b"whole")
            sound = place.read_bytes() == b"whole"
        except OSError as error:
            return [Finding("files", f"cannot write to {folder}: {error}", "make room, or set TMPDIR")]
    return [
        Finding(
            "files", f"written and read back in {Path(folder).parent}", None if sound else "check the disk"
        )
    ]


def _s3() -> list[Finding]:
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        credentials = botocore.session.Session().get_credentials()
    except BotoCoreError as error:
        return [Finding("S3", f"credentials cannot be read: {error}", "mend the AWS configuration")]
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "Amazon's")
    found = f"credentials from {credentials.method}" if credentials else "no credentials, s3:// needs some"
    return [Finding("S3", f"{found}; endpoint: {endpoint}")]


def _models() -> list[Finding]:
    folder = cache_folder()
    held = sorted(p.parent.name for p in folder.glob("*/config.json"))
    return [
        Finding(
            "demo models", ", ".join(held) if held else f"not fetched yet; the demo puts them in {folder}"
        )
    ]


def _ray() -> list[Finding]:
    from influcoder_ray.stages.cluster import connect, resources

    try:
        connect(None)
        found = resources()
    except (UserError, RuntimeError, ConnectionError, TimeoutError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [Finding("Ray", f"does not start: {reason}", "run `ray stop`, then try again")]
    return [Finding("Ray", ", ".join(f"{count:g} {name}" for name, count in found.items()))]


def _settings(config: str) -> list[Finding]:
    from importlib import import_module

    try:
        settings = load_settings(config)
    except UserError as error:
        return [Finding("settings", str(error), "mend the settings file")]
    findings = [Finding("settings", f"{config} is valid")]
    for stage in STAGES:
        check = getattr(import_module(f"influcoder_ray.stages.{stage}"), "check", None)
        if check is None:
            continue
        try:
            check(settings)
            findings.append(Finding(f"{stage} inputs", "can be used"))
        except (UserError, RunFailed) as error:
            findings.append(Finding(f"{stage} inputs", "cannot be used", str(error)))
    return findings
