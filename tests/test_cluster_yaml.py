"""The launcher file against the installed Ray, without a cloud."""

import copy
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, FileConfigReader
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.scripts.scripts import start

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "cluster.yaml"

Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    """The file as it is written."""
    loaded = yaml.safe_load(FILE.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def autoscaling() -> AutoscalingConfig:
    """The file as the autoscaler on the head reads it."""
    return FileConfigReader(str(FILE), skip_content_hash=True).get_cached_autoscaling_config()


def validate(config: Config) -> None:
    """Raise what `ray up` would raise."""
    validate_config(prepare_config(copy.deepcopy(config)))


def workers(config: Config) -> dict[str, Config]:
    """The node types other than the head's, by name."""
    return {
        name: kind
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    }


def is_spot(kind: Config) -> bool:
    """Whether EC2 may take a node of this type away."""
    return kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"


def pinned_versions() -> dict[str, str]:
    """The versions of constraints.txt by canonical name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def worker_bounds_out_of_order(config: Config) -> list[str]:
    """The worker types whose bounds contradict themselves or the whole; Ray checks neither."""
    return [
        name
        for name, kind in workers(config).items()
        if not 0 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"]
    ]


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


def test_the_installed_ray_accepts_the_file(config: Config) -> None:
    """Prevents a file that `ray up` refuses."""
    validate(config)


@pytest.mark.parametrize(
    "path",
    [
        "max_workers",
        "docker/run_options",
        "available_node_types/gpu-spot/max_workers",
        "available_node_types/head/labels",
    ],
)
def test_a_misspelt_key_is_refused(config: Config, path: str) -> None:
    """Prevents the acceptance above from being worth nothing: a typo must not pass as an unknown extra."""
    *parents, key = path.split("/")
    holder = config
    for parent in parents:
        holder = holder[parent]
    holder[f"{key}_"] = holder.pop(key)
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}_' was unexpected"):
        validate(config)


def test_a_head_node_type_that_does_not_exist_is_refused(config: Config) -> None:
    """Prevents a renamed node type from leaving `head_node_type` behind."""
    config["head_node_type"] = "heads"
    with pytest.raises(ValueError, match="head_node_type"):
        validate(config)


def test_the_head_is_on_demand_and_takes_no_tasks(config: Config) -> None:
    """Prevents the whole cluster from going down with a spot head, or with a task that eats its memory."""
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert not is_spot(head)


def test_gpu_workers_run_on_spot_from_zero_with_an_on_demand_fallback(config: Config) -> None:
    """Prevents a cluster that costs money while idle, or that cannot go on when spot is scarce."""
    kinds = workers(config).values()
    assert all(kind["min_workers"] == 0 and kind["resources"]["GPU"] >= 1 for kind in kinds)
    spot = [kind for kind in kinds if is_spot(kind)]
    on_demand = [kind for kind in kinds if not is_spot(kind)]
    assert spot
    assert on_demand
    assert max(kind["priority"] for kind in on_demand) < min(kind["priority"] for kind in spot)
    assert sum(kind["max_workers"] for kind in on_demand) < sum(kind["max_workers"] for kind in spot)


def test_the_market_label_says_how_a_node_is_bought(config: Config) -> None:
    """Prevents a label selector for on-demand nodes from landing on spot."""
    for kind in config["available_node_types"].values():
        assert kind["labels"] == {"market": "spot" if is_spot(kind) else "on-demand"}


def test_worker_bounds_are_in_order(config: Config) -> None:
    """Prevents bounds that no cluster can meet; Ray's own check lets them through, ours must not."""
    assert worker_bounds_out_of_order(config) == []
    config["available_node_types"]["gpu-spot"]["min_workers"] = config["max_workers"]
    validate(config)
    assert worker_bounds_out_of_order(config) == ["gpu-spot"]


def test_the_autoscaler_reads_what_the_file_says(config: Config, autoscaling: AutoscalingConfig) -> None:
    """Prevents a field that the schema knows and the autoscaler reads differently or not at all."""
    read = autoscaling.get_node_type_configs()
    assert set(read) == set(config["available_node_types"])
    for name, kind in workers(config).items():
        assert read[name].min_worker_nodes == kind["min_workers"]
        assert read[name].max_worker_nodes == kind["max_workers"]
        assert read[name].priority == kind["priority"]
        assert read[name].resources == kind["resources"]
        assert read[name].labels == kind["labels"]


def test_demand_for_gpus_is_met_by_spot_first_and_by_on_demand_after(
    config: Config, autoscaling: AutoscalingConfig
) -> None:
    """Prevents priorities without effect: Ray heeds them only where two types suit a demand equally well."""
    most = {name: kind["max_workers"] for name, kind in workers(config).items()}
    assert launched(autoscaling, gpus=1) == {"gpu-spot": 1}
    assert launched(autoscaling, gpus=most["gpu-spot"]) == {"gpu-spot": most["gpu-spot"]}
    assert launched(autoscaling, gpus=100) == most
    assert launched(autoscaling, gpus=1, unavailable=("gpu-spot",)) == {"gpu-on-demand": 1}


def test_ray_is_the_pinned_release_wherever_the_file_names_it(config: Config) -> None:
    """Prevents an image whose Ray differs from the one that CI tested and a client submits with."""
    named = re.findall(r"\bray(?:\[[^\]]*\])?(?:==|:)(\d+\.\d+\.\d+)", yaml.safe_dump(config, width=10_000))
    assert set(named) == {pinned_versions()["ray"]}
    assert len(named) == 3, "the image, the head's image and the setup command"


def test_nodes_get_the_projects_dependencies_at_the_pinned_versions(config: Config) -> None:
    """Prevents a dependency that the project needs and the cluster lacks, or has at another version."""
    (command,) = config["setup_commands"]
    pip, install, *arguments = shlex.split(command)
    assert (pip, install) == ("pip", "install")
    installed = {
        (canonicalize_name(requirement.name), frozenset(requirement.extras), str(requirement.specifier))
        for requirement in map(Requirement, arguments)
    }
    pins = pinned_versions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert installed == {
        (
            canonicalize_name(needed.name),
            frozenset(needed.extras),
            f"=={pins[canonicalize_name(needed.name)]}",
        )
        for needed in map(Requirement, project["dependencies"])
    }


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_knows_every_option(config: Config, commands: str) -> None:
    """Prevents a node that never joins because `ray start` of this release refuses an option."""
    (command,) = (line for line in config[commands] if "ray start" in line)
    options = {word.split("=")[0] for word in command.split("ray start")[1].split() if word.startswith("-")}
    assert options <= {option for parameter in start.params for option in parameter.opts}
    scaled = "--autoscaling-config=~/ray_bootstrap_config.yaml" in command.split()
    assert scaled == (commands == "head_start_ray_commands"), "the head, and it alone, scales the cluster"


def test_the_file_holds_no_secret(config: Config) -> None:
    """Prevents keys in a file that is shared; storage is reached through instance profiles."""
    assert list(secrets(config)) == []
    for kind in config["available_node_types"].values():
        assert set(kind["node_config"]["IamInstanceProfile"]) == {"Name"}


@pytest.mark.parametrize(
    ("addition", "found"),
    [
        ({"auth": {"ssh_private_key": "key.pem"}}, "/auth/ssh_private_key"),
        ({"setup_commands": ["export AWS_SECRET_ACCESS_KEY=abc"]}, "/setup_commands/0"),
        ({"docker": {"run_options": ["--env X=AKIAABCDEFGHIJKLMNOP"]}}, "/docker/run_options/0"),
    ],
)
def test_a_secret_would_be_found(addition: Config, found: str) -> None:
    """Prevents a search for secrets that finds none because it cannot."""
    assert list(secrets(addition)) == [found]
