"""Joining or starting Ray, and what a worker reserves there."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from influcoder_ray.config import ResourceSpec, WorkersSpec
from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.stopping import listen

_OBJECT_STORE_BYTES = 256 << 20
# Workers that die one after the other while they load, before Ray Data gives up: where machines are cheap,
# several may go in those minutes.
_DEATHS_WHILE_LOADING = 10


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
    context.max_consecutive_actor_init_deaths = _DEATHS_WHILE_LOADING
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Reservation:
    """What each worker of a stage reserves, how many there may be, and how long one may be silent."""

    min_workers: int
    max_workers: int
    cpus: float
    gpus: float
    hung_after_seconds: float

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
    most = spec.max or max(spec.min, int(room))
    return Reservation(spec.min, most, cpus, gpus, spec.hung_after_seconds)


def refuse_guesswork(workers: ResourceSpec) -> None:
    """Refuse settings that leave open what only machines could tell, where there is no machine yet.

    A cluster that has scaled down to nothing starts what it is asked for, and cannot be asked for "what there
    is".

    Raises:
        UserError: naming the settings that are to be filled in.
    """
    if any(
        node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"] for kind in ("CPU", "GPU")
    ):
        return
    for stage, spec in workers:
        unset = [name for name in ("gpus", "max") if getattr(spec, name) is None]
        if unset:
            raise UserError(
                f"workers.{stage}.{unset[0]}: unset, and the cluster has no machine yet from which to tell; "
                f"set {' and '.join(f'workers.{stage}.{name}' for name in unset)} (gpus: 0 for workers "
                "without GPU)"
            )


def beside_the_driver(kind: type, *arguments: Any) -> Any:
    """Start an actor of a class on the driver's machine, without which there would be no run anyway.

    On any other it could go with that machine, and the stage with it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote(*arguments)


def result_of(task: Any) -> Any:
    """What a task comes to; what it says of a fault comes as it was said, without the worker's stack.

    Raises:
        UserError, RunFailed: as the task.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | RunFailed):
            raise error.cause from None
        raise


def resources() -> dict[str, float]:
    """What the joined cluster has: nodes, CPUs and GPUs."""
    total = ray.cluster_resources()
    alive = sum(1 for node in ray.nodes() if node["Alive"])
    return {"nodes": alive, "CPUs": total.get("CPU", 0.0), "GPUs": total.get("GPU", 0.0)}
