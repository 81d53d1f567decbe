"""What the tests of the launcher files and manifests share; importable because it lies beside conftest.py."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.scripts.scripts import start

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "jobs" / "clusters"

Config = dict[str, Any]


def pinned_versions() -> dict[str, str]:
    """The versions of constraints.txt by canonical name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def project() -> Config:
    """The `project` table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pinned_dependencies() -> set[tuple[str, frozenset[str], str]]:
    """Name, extras and `==version` of each of the project's dependencies."""
    pins = pinned_versions()
    return {
        (
            canonicalize_name(needed.name),
            frozenset(needed.extras),
            f"=={pins[canonicalize_name(needed.name)]}",
        )
        for needed in map(Requirement, project()["dependencies"])
    }


def ray_start_options() -> set[str]:
    """The options that `ray start` of the installed release knows, with their dashes."""
    return {option for parameter in start.params for option in parameter.opts}


def secrets(value: object, path: str = "") -> Iterator[str]:
    """The paths of keys that name a secret and of strings that look like one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if re.search(
                r"secret|password|token|credential|access_?key|private_?key", str(key), re.IGNORECASE
            ):
                yield f"{path}/{key}"
            yield from secrets(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from secrets(inner, f"{path}/{index}")
    elif isinstance(value, str) and re.search(
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|BEGIN [A-Z ]*PRIVATE KEY|(SECRET|PASSWORD|TOKEN)[A-Z_]*=", value
    ):
        yield path


def launched(autoscaling: AutoscalingConfig, gpus: int, unavailable: tuple[str, ...] = ()) -> dict[str, int]:
    """How many nodes of each type Ray starts for `gpus` tasks of one GPU each, from an empty cluster."""
    demand = [ResourceRequestUtil.make({"GPU": 1})] * gpus
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=autoscaling.get_node_type_configs(),
            max_num_nodes=autoscaling.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(demand),
            recoverable_resource_availabilities=dict.fromkeys(unavailable, 0.0),
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}
