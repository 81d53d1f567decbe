"""The launcher files against the installed Ray, without a cloud."""

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from launching import (
    CLUSTERS,
    ROOT,
    Config,
    launched,
    pinned_dependencies,
    pinned_versions,
    ray_start_options,
    secrets,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, FileConfigReader

AWS, GCP = ROOT / "cluster.yaml", CLUSTERS / "gcp.yaml"


@pytest.fixture(params=[AWS, GCP], ids=["aws", "gcp"])
def file(request: pytest.FixtureRequest) -> Path:
    """Each launcher file in turn."""
    path: Path = request.param
    return path


def load(file: Path) -> Config:
    """The file as it is written."""
    loaded = yaml.safe_load(file.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def config(file: Path) -> Config:
    return load(file)


@pytest.fixture
def gcp() -> Config:
    return load(GCP)


@pytest.fixture
def autoscaling(file: Path) -> AutoscalingConfig:
    """The file as the autoscaler on the head reads it."""
    return FileConfigReader(str(file), skip_content_hash=True).get_cached_autoscaling_config()


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
    """Whether the cloud may take a node of this type away."""
    node: dict[str, Any] = kind["node_config"]
    return (
        node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or node.get("scheduling", {}).get("provisioningModel") == "SPOT"
    )


def worker_bounds_out_of_order(config: Config) -> list[str]:
    """The worker types whose bounds contradict themselves or the whole; Ray checks neither."""
    return [
        name
        for name, kind in workers(config).items()
        if not 0 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"]
    ]


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
    assert installed == pinned_dependencies()


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_knows_every_option(config: Config, commands: str) -> None:
    """Prevents a node that never joins because `ray start` of this release refuses an option, or spills into
    the session's folder.
    """
    (command,) = (line for line in config[commands] if "ray start" in line)
    options = {word.split("=")[0] for word in command.split("ray start")[1].split() if word.startswith("-")}
    assert options <= ray_start_options()
    assert "--object-spilling-directory" in options
    scaled = "--autoscaling-config=~/ray_bootstrap_config.yaml" in command.split()
    assert scaled == (commands == "head_start_ray_commands"), "the head, and it alone, scales the cluster"


def test_the_file_holds_no_secret(config: Config) -> None:
    """Prevents keys in a file that is shared: storage is reached through roles or a mounted folder."""
    assert list(secrets(config)) == []


def test_on_aws_storage_is_reached_through_instance_profiles() -> None:
    """Prevents nodes that would need keys."""
    for kind in load(AWS)["available_node_types"].values():
        assert set(kind["node_config"]["IamInstanceProfile"]) == {"Name"}


def test_both_clouds_get_the_same_cluster() -> None:
    """Prevents a setting that is mended for one cloud and forgotten for the other."""
    aws, gcp = load(AWS), load(GCP)
    own = {"provider", "available_node_types", "file_mounts", "initialization_commands"}
    # Ray's own default there is of 2019; the autoscaler for AWS needs nothing that the image lacks.
    (client,) = gcp.pop("head_setup_commands")
    assert re.fullmatch(r"pip install google-api-python-client==\d+\.\d+\.\d+", client)
    assert client in GCP.read_text("utf-8").partition("\ncluster_name:")[0], "what `ray up` needs is the same"
    assert {k: v for k, v in aws.items() if k not in own} == {k: v for k, v in gcp.items() if k not in own}
    for name, kind in aws["available_node_types"].items():
        other = gcp["available_node_types"][name]
        assert kind | {"node_config": None} == other | {"node_config": None}


def test_on_google_cloud_nobodys_project_is_named_so_that_ray_creates_none(gcp: Config) -> None:
    """Prevents a placeholder: Ray tries to create the project of a name that it may not read."""
    assert gcp["provider"]["project_id"] is None


def test_on_google_cloud_machines_with_a_gpu_fit_what_compute_engine_asks_of_them(gcp: Config) -> None:
    """Prevents machines that are refused: disks of another zone, or a GPU that is to move to another host."""
    provider = gcp["provider"]
    assert provider["availability_zone"].rpartition("-")[0] == provider["region"]
    for kind in gcp["available_node_types"].values():
        (disk,) = kind["node_config"]["disks"]
        kept = f"zones/{provider['availability_zone']}/diskTypes/pd-balanced"
        assert disk["boot"]
        assert disk["autoDelete"], "a disk that outlives its machine costs"
        assert disk["initializeParams"]["diskType"] == kept
    for kind in workers(gcp).values():
        scheduling = kind["node_config"]["scheduling"]
        assert scheduling["onHostMaintenance"] == "TERMINATE"
        assert not scheduling["automaticRestart"]
        assert (scheduling.get("instanceTerminationAction") == "DELETE") == is_spot(kind)


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
