"""The Kubernetes manifests against KubeRay's definitions and Ray's autoscaler, without a Kubernetes."""

import copy
from functools import cache
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from launching import CLUSTERS, ROOT, Config, launched, pinned_versions, ray_start_options, secrets
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

import influcoder_ray

FOLDER = CLUSTERS / "kuberay"
DEFINITIONS = ROOT.parent / "shared" / "schemas" / "kuberay"
DEFINED_BY = {"raycluster.yaml": "ray.io_rayclusters.yaml", "rayjob.yaml": "ray.io_rayjobs.yaml"}

needs_definitions = pytest.mark.skipif(
    not DEFINITIONS.is_dir(), reason=f"KubeRay's definitions are not at {DEFINITIONS}"
)


def load(name: str) -> Config:
    """The one document of a manifest."""
    (document,) = yaml.safe_load_all((FOLDER / name).read_text("utf-8"))
    assert isinstance(document, dict)
    return document


@pytest.fixture(params=sorted(DEFINED_BY))
def name(request: pytest.FixtureRequest) -> str:
    """Each manifest's file name in turn."""
    return str(request.param)


@pytest.fixture
def cluster(name: str) -> Config:
    """The specification of the cluster in each manifest."""
    return cluster_of(load(name))


def cluster_of(manifest: Config) -> Config:
    spec: Config = manifest["spec"]
    found: Config = spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]
    return found


def pods(cluster: Config) -> dict[str, Config]:
    """The specification of the head's and of each group's pods."""
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {
        group: spec["template"]["spec"]
        for group, spec in ({"head": cluster["headGroupSpec"]} | groups).items()
    }


def container(pod: Config) -> Config:
    """The one container that a pod is given."""
    (found,) = pod["containers"]
    assert isinstance(found, dict)
    return found


def closed(schema: Any) -> Any:
    """The schema with every object that lists its properties refusing others, at every depth."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    # Where `properties` is itself the name of a field it holds that field's schema, which has a type.
    if schema.get("type") == "object" and "properties" in schema:
        inner["additionalProperties"] = False
    return inner


@cache
def definition(name: str) -> Any:
    """What KubeRay's resource definition says of a manifest's kind, closed."""
    text = (DEFINITIONS / DEFINED_BY[name]).read_text("utf-8")
    # libyaml's loader: the definitions have 25,000 lines.
    document = yaml.load(text, Loader=yaml.CSafeLoader)
    (version,) = (v for v in document["spec"]["versions"] if v["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def faults(name: str, manifest: Config) -> list[str]:
    """What the API server would refuse a manifest for, or drop from it; each with where it is."""
    # OpenAPI 3.0, which Kubernetes speaks, grew out of this draft.
    found = jsonschema.Draft4Validator(definition(name)).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def holder(manifest: Config, path: str) -> tuple[Any, Any]:
    """The object that holds the last part of a path, and that part as a key or an index."""
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    inner: Any = manifest
    for parent in parents:
        inner = inner[parent]
    return inner, last


@needs_definitions
def test_kuberay_accepts_the_manifest(name: str) -> None:
    """Prevents a manifest that `kubectl apply` refuses."""
    assert faults(name, load(name)) == []


FIELDS = {
    "raycluster.yaml": [
        "spec/rayVersion",
        "spec/enableInTreeAutoscaling",
        "spec/autoscalerOptions/idleTimeoutSeconds",
        "spec/authOptions/mode",
        "spec/workerGroupSpecs/0/maxReplicas",
        "spec/workerGroupSpecs/0/template/spec/terminationGracePeriodSeconds",
        "spec/workerGroupSpecs/0/template/spec/tolerations/0/effect",
        "spec/workerGroupSpecs/0/template/spec/containers/0/resources/limits",
        "spec/workerGroupSpecs/0/template/spec/volumes/0/emptyDir/sizeLimit",
    ],
    "rayjob.yaml": [
        "spec/shutdownAfterJobFinishes",
        "spec/backoffLimit",
        "spec/rayClusterSpec/workerGroupSpecs/0/minReplicas",
        "spec/rayClusterSpec/headGroupSpec/template/spec/volumes/1/configMap/name",
    ],
}


@needs_definitions
@pytest.mark.parametrize(("name", "path"), [(name, path) for name in FIELDS for path in FIELDS[name]])
def test_a_misspelt_field_is_refused(name: str, path: str) -> None:
    """Prevents the acceptance above from being worth nothing: Kubernetes drops unknown fields."""
    manifest = load(name)
    inner, key = holder(manifest, path)
    inner[f"{key}s"] = inner.pop(key)
    assert any(f"'{key}s' was unexpected" in fault for fault in faults(name, manifest))


@needs_definitions
@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("rayjob.yaml", "spec/backoffLimit", "3"),
        ("raycluster.yaml", "spec/autoscalerOptions/version", "v3"),
        ("raycluster.yaml", "spec/headGroupSpec/rayStartParams/num-cpus", 0),
        ("raycluster.yaml", "spec/workerGroupSpecs/0/template/spec/nodeSelector", ["spot"]),
        ("raycluster.yaml", "spec/workerGroupSpecs/0/template/spec/containers/0/name", None),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, path: str, value: object) -> None:
    """Prevents the likes of a bare 0 where Ray's options are strings."""
    manifest = load(name)
    inner, key = holder(manifest, path)
    inner[key] = value
    assert faults(name, manifest) != []


def test_the_job_starts_the_cluster_of_the_other_manifest_and_adds_its_settings() -> None:
    """Prevents a line that is mended in one manifest and forgotten in the other."""
    job = copy.deepcopy(cluster_of(load("rayjob.yaml")))
    head = pods(job)["head"]
    assert head["volumes"].pop()["name"] == "settings"
    assert container(head)["volumeMounts"].pop()["name"] == "settings"
    assert job == cluster_of(load("raycluster.yaml"))


def test_the_autoscaler_starts_gpu_workers_from_none_as_they_are_asked_for(cluster: Config) -> None:
    """Prevents pods that cost money while idle, and limits in which the autoscaler finds no GPU."""
    read = AutoscalingConfig(
        _derive_autoscaling_config_from_ray_cr(
            {"metadata": {"name": "a", "namespace": "default"}, "spec": cluster}
        )
    )
    kinds = read.get_node_type_configs()
    assert set(kinds) == {"headgroup", "gpu-spot"}
    assert kinds["headgroup"].resources["CPU"] == 0
    assert (kinds["gpu-spot"].min_worker_nodes, kinds["gpu-spot"].max_worker_nodes) == (0, 8)
    assert kinds["gpu-spot"].resources["GPU"] == 1
    assert kinds["gpu-spot"].labels == {"market": "spot"}
    assert read.get_idle_timeout_s() == 300
    assert launched(read, gpus=1) == {"gpu-spot": 1}
    assert launched(read, gpus=100) == {"gpu-spot": 8}


def test_version_2_of_the_autoscaler_has_pods_that_are_not_restarted(cluster: Config) -> None:
    """Prevents a pod that comes back as another node of Ray under the old one's name."""
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert {pod["restartPolicy"] for pod in pods(cluster).values()} == {"Never"}


def test_the_head_and_the_workers_ask_for_nodes_of_different_markets(cluster: Config) -> None:
    """Prevents the whole cluster from going down with a spot head, or GPUs at the full price."""
    head, worker = (pods(cluster)[name] for name in ("head", "gpu-spot"))
    assert head["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
    assert worker["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert "tolerations" not in head
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]


def test_pods_have_time_to_stop_and_no_more_than_spot_gives(cluster: Config) -> None:
    """Prevents a driver that is killed before it can say how to resume, and pods that hang about."""
    assert all(30 < pod["terminationGracePeriodSeconds"] <= 120 for pod in pods(cluster).values())


def test_ray_spills_to_a_volume_that_the_pod_has_room_for(cluster: Config) -> None:
    """Prevents spilling into the container's own layer, and a volume that Kubernetes never set aside."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group, pod in zip(groups, pods(cluster).values(), strict=True):
        folder = group["rayStartParams"]["object-spilling-directory"]
        (mount,) = (m for m in container(pod)["volumeMounts"] if m["mountPath"] == folder)
        (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
        room = container(pod)["resources"]["requests"]["ephemeral-storage"]
        assert gibibytes(volume["emptyDir"]["sizeLimit"]) <= gibibytes(room)


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_ray_start_knows_every_parameter(cluster: Config) -> None:
    """Prevents a pod that never joins: the definitions let any parameter through."""
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert {f"--{key}" for key in group["rayStartParams"]} <= ray_start_options()


def test_processors_and_memory_are_not_overcommitted(cluster: Config) -> None:
    """Prevents an object store that is sized for memory which the node does not have."""
    for pod in pods(cluster).values():
        resources = container(pod)["resources"]
        assert resources["limits"].items() <= resources["requests"].items()


def test_every_pod_runs_this_release_in_one_image(cluster: Config) -> None:
    """Prevents pods of different code, and a Ray other than the one that CI tested."""
    images = {container(pod)["image"] for pod in pods(cluster).values()}
    assert images == {f"registry.example.com/influcoder-ray:{influcoder_ray.__version__}"}
    assert cluster["rayVersion"] == pinned_versions()["ray"]


def test_ray_asks_for_a_token_and_the_manifest_holds_no_secret(cluster: Config) -> None:
    """Prevents an open port that runs anything, and keys in a file that is shared."""
    assert cluster["authOptions"] == {"mode": "token"}
    named = {"secretRef": {"name": "influcoder-ray-s3", "optional": True}}
    for pod in pods(cluster).values():
        assert container(pod).pop("envFrom") == [named]
    assert list(secrets(cluster)) == []


def test_the_job_runs_the_pipeline_with_the_settings_of_the_configmap() -> None:
    """Prevents a script or a settings file that is not there."""
    manifest = load("rayjob.yaml")
    python, script, option, settings = manifest["spec"]["entrypoint"].split()
    assert (python, option) == ("python", "--config")
    assert (ROOT / script).is_file()
    head = pods(cluster_of(manifest))["head"]
    folder, _, file = settings.rpartition("/")
    (mount,) = (m for m in container(head)["volumeMounts"] if m["mountPath"] == folder)
    (volume,) = (v for v in head["volumes"] if v["name"] == mount["name"])
    created = f"kubectl create configmap {volume['configMap']['name']} --from-file={file}"
    assert created in (FOLDER / "rayjob.yaml").read_text("utf-8")
    assert created in (ROOT / "README.md").read_text("utf-8")


def test_the_job_is_submitted_again_and_its_cluster_taken_down() -> None:
    """Prevents one lost head from ending a run, and a cluster that costs money after it."""
    spec = load("rayjob.yaml")["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"]
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
