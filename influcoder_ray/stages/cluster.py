"""Joining or starting Ray, and what a worker reserves there."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray

from influcoder_ray.config import WorkersSpec
from influcoder_ray.errors import UserError
from influcoder_ray.stopping import listen

_OBJECT_STORE_BYTES = 256 << 20


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or the one this job was submitted to, or start one on this machine.

    Raises:
        UserError: nothing answers at the address.
    """
    if ray.is_initialized():
        return
    joined = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": bool(joined)}
    if joined:
        try:
            ray.init(address=joined, **common)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"--address: no Ray cluster answers at {joined} ({str(error).splitlines()[0]}); "
                "give host:port, ray://host:port or auto, or leave it out to start Ray here"
            ) from error
    else:
        # Units travel as names and summaries, never as rows: the object store stays almost empty.
        # Ray's core prints a warning on every actor pool of Ray Data, which restarts well all the same.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # "local": never a cluster that happens to run on this machine.
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **common)
    listen()
    quiet_ray_data()


def quiet_ray_data() -> None:
    """Ray Data's own bars and plans would drown the stage's progress lines."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Waiting for a GPU node to come up is no hang.
    context.execution_no_progress_timeout_s = -1
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Reservation:
    """What each worker of a stage reserves, and how many there may be."""

    min_workers: int
    max_workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Threads for a worker's arithmetic: the CPUs that it reserves, at least one."""
        return max(1, int(self.cpus))


def reserve(spec: WorkersSpec) -> Reservation:
    """Fill in what the settings leave open from what the cluster has now.

    A GPU worker reserves no CPU: on GPU nodes the GPU is what there is least of. A CPU worker takes
    all of the smallest machine's CPUs, for two that share a machine's cores get in each other's way.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total_gpus = sum(node.get("GPU", 0) for node in nodes)
    cpu_nodes = [node["CPU"] for node in nodes if node.get("CPU", 0) >= 1]
    gpus = spec.gpus if spec.gpus is not None else (1.0 if total_gpus else 0.0)
    default_cpus = 0.0 if gpus else min(cpu_nodes, default=1.0)
    cpus = spec.cpus if spec.cpus is not None else default_cpus
    room = total_gpus / gpus if gpus else sum(cpu_nodes) / cpus if cpus else spec.min
    return Reservation(spec.min, spec.max or max(spec.min, int(room)), cpus, gpus)


def resources() -> dict[str, float]:
    """What the joined cluster has: nodes, CPUs and GPUs."""
    total = ray.cluster_resources()
    alive = sum(1 for node in ray.nodes() if node["Alive"])
    return {"nodes": alive, "CPUs": total.get("CPU", 0.0), "GPUs": total.get("GPU", 0.0)}
