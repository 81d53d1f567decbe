"""The cluster follows the pools: from no machine to as many as are asked for, and back to none."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray_nodes import RAY, environment, free_port, living_nodes, start_driver, wait_for_head

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1200)]
IDLE_MINUTES = 0.25
MOST_NODES = 4
# The provider of made-up nodes looks for the head there, whatever it is told.
PORT = 6379


def autoscaling() -> dict[str, Any]:
    """What `AutoscalingCluster` of ray.cluster_utils makes, which reads a file that the wheel lacks."""
    no_commands = {
        f"{where}{when}_commands": []
        for where in ("", "head_", "worker_")
        for when in ("setup", "start_ray", "initialization")
    }
    del no_commands["start_ray_commands"], no_commands["head_initialization_commands"]
    del no_commands["worker_initialization_commands"]
    return {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            "gpu": {
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100 << 20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST_NODES,
            },
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        },
        "head_node_type": "ray.head.default",
        **no_commands,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture
def from_zero() -> Iterator[tuple[str, str]]:
    """A head without CPUs whose autoscaler may start nodes of a logical GPU; both its addresses."""
    # The autoscaler looks for its defaults there, and the wheel lacks the file.
    defaults = Path(ray.__file__).parent / "autoscaler/_private/fake_multi_node/example.yaml"
    lacking = not defaults.exists()
    if lacking:
        defaults.write_text(json.dumps(autoscaling()))
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(autoscaling()))
    dashboard_port = free_port()
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=0", f"--port={PORT}"),
            *(f"--temp-dir={folder}", f"--dashboard-port={dashboard_port}"),
            *("--object-store-memory=100000000", "--disable-usage-stats"),
            *(f"--dashboard-agent-listen-port={free_port()}", f"--autoscaling-config={config}"),
        ],
        env=environment()
        | {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        },
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_head(f"http://127.0.0.1:{dashboard_port}")
        yield f"127.0.0.1:{PORT}", f"http://127.0.0.1:{dashboard_port}"
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(10)
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if lacking:
            defaults.unlink()


def gpus(dashboard: str) -> int:
    """How many GPUs the cluster has now."""
    return int(sum(node["resources_total"].get("GPU", 0) for node in living_nodes(dashboard)))


def test_machines_come_as_a_pool_asks_for_them_and_go_when_nothing_does(
    from_zero: tuple[str, str], make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Machines that never come leave a run waiting, those that never go are paid for, and so are too many."""
    address, dashboard = from_zero
    file = make_file(tmp_path / "out")
    one, two = ({"gpus": 1, "max": count} for count in (1, 2))
    settings = yaml.safe_load(file.read_text())
    settings["workers"] = dict.fromkeys(("sample", "attribute", "evaluate"), one)
    settings["workers"] |= {"sketch": two, "embed": two}
    # These nodes' GPUs are made up: torch would look for a real one.
    settings["workers"]["distill"] = {"cpus": 1, "gpus": 0, "max": 1}
    file.write_text(yaml.safe_dump(settings))
    driver = start_driver(address, file)
    seen = [0]
    while driver.poll() is None:
        seen.append(gpus(dashboard))
        time.sleep(1)
    assert driver.wait() == 0, file.with_suffix(".log").read_text()[-3000:]
    # Four could have been had.
    assert max(seen) == 2, seen
    deadline = time.monotonic() + 60 * IDLE_MINUTES + 120
    while gpus(dashboard):
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("setting", ["gpus", "max"])
def test_what_only_machines_could_tell_must_be_set_where_there_are_none(
    from_zero: tuple[str, str], make_file: Callable[..., Path], tmp_path: Path, setting: str
) -> None:
    """One guessed worker without a GPU would be all that a cluster at rest ever gets."""
    file = make_file(tmp_path / "out")
    settings = yaml.safe_load(file.read_text())
    whole = {"gpus": 1, "max": 1}
    settings["workers"] = dict.fromkeys(("sample", "distill", "attribute", "evaluate", "embed"), whole)
    settings["workers"]["sketch"] = {name: value for name, value in whole.items() if name != setting}
    file.write_text(yaml.safe_dump(settings))
    driver = start_driver(from_zero[0], file)
    assert driver.wait(120) == 2
    said = file.with_suffix(".log").read_text()
    assert f"workers.sketch.{setting}: unset, and the cluster has no machine yet from which to tell" in said
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
