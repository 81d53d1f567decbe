"""What of this machine, and of a settings file, works."""

import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from influcoder_ray.config import PipelineSettings
from influcoder_ray.demo.weights import cache_folder
from influcoder_ray.doctor.findings import Finding
from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.pipeline import wanted_stages
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.stores import refuse_unreachable

_PACKAGES = ("ray", "torch", "transformers", "peft", "pyarrow", "numpy", "s3fs")


def machine_findings() -> Iterator[Finding]:
    """Everything that does not depend on what is to be run, one thing after the other."""
    for look in (_python, _packages, _devices, _files, _s3, _models, _ray):
        yield from look()


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
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Place(folder) / "probe"
            place.write_whole(b"whole")
            sound = place.read_bytes() == b"whole"
    except (OSError, RunFailed) as error:
        return [Finding("files", f"cannot be written: {error}", "make room, or set TMPDIR")]
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


def input_findings(settings: PipelineSettings) -> list[Finding]:
    """Whether each stage can use the inputs that the settings name."""
    try:
        refuse_unreachable(settings.addresses.items())
    except UserError as error:
        return [Finding("S3", "cannot be reached", str(error))]
    findings = []
    for stage in wanted_stages(settings):
        check = getattr(import_module(f"influcoder_ray.stages.{stage}"), "check", None)
        if check is None:
            continue
        try:
            check(settings)
            findings.append(Finding(f"{stage} inputs", "can be used"))
        except (UserError, RunFailed) as error:
            findings.append(Finding(f"{stage} inputs", "cannot be used", str(error)))
    return findings
