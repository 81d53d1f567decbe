"""Ray nodes as processes of this machine, jobs on them, and ways to take one away."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
WORKER_NODES = 2
# What a run leaves, its figures and report apart.
TABLES = (
    *("sample", "sketches", "encoder", "embeddings", "query_embeddings"),
    *("attributions", "group_influence"),
)
Process: TypeAlias = "subprocess.Popen[bytes]"


class RayNodes:
    """A head without CPUs and two worker nodes of one CPU, which can be killed and replaced."""

    def __init__(self) -> None:
        # Short: Ray's sockets lie below it, and their paths are limited.
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        port, dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard_port}"
        self._head = _start_node(
            "--head",
            "--num-cpus=0",
            f"--port={port}",
            f"--temp-dir={self._folder}",
            f"--dashboard-port={dashboard_port}",
        )
        self.workers: list[Process] = []
        wait_for_head(self.dashboard)

    def restore(self) -> None:
        """Have two worker nodes again."""
        while len(self.workers) < WORKER_NODES:
            self.workers.append(_start_node(f"--address={self.address}", "--num-cpus=1"))
            # One after the other: two that start at once on one machine get in each other's way.
            self._wait_for_nodes(1 + len(self.workers))

    def kill(self, node: Process) -> None:
        """Take a worker node away with all its processes, as a machine goes that loses its power."""
        for process in (*_below(node), psutil.Process(node.pid)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self.workers.remove(node)

    def node_of(self, title: str) -> Process:
        """The worker node on which a process runs whose title holds `title`."""
        (first, *_) = (node for node in self.workers if processes(title, node))
        return first

    def node_id(self, node: Process) -> str:
        """Ray's name of a worker node."""
        (raylet,) = (p for p in _below(node) if p.name() == "raylet")
        (given,) = (part for part in raylet.cmdline() if part.startswith("--node_id="))
        return given.partition("=")[2]

    def stop(self) -> None:
        nodes = [*self.workers, self._head]
        for node in nodes:
            node.terminate()
        for node in nodes:
            with suppress(subprocess.TimeoutExpired):
                node.wait(10)
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, 9)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for_nodes(self, number: int) -> None:
        deadline = time.monotonic() + 90
        while True:
            alive = living_nodes(self.dashboard)
            if len(alive) == number:
                return
            assert time.monotonic() < deadline, f"{len(alive)} nodes are up, not {number}"
            time.sleep(0.5)


def wait_for_head(dashboard: str) -> None:
    """Until a job can be submitted: the dashboard answers before its node's agent can start any."""
    deadline = time.monotonic() + 120
    while (tried := ray_job(dashboard, "submit", "--", "true")).returncode:
        assert time.monotonic() < deadline, f"no Ray head came up: {tried.stderr[-500:]}"
        time.sleep(0.5)


def living_nodes(dashboard: str) -> list[dict[str, Any]]:
    """What Ray knows of each node that is up, the head among them."""
    listed = subprocess.run(
        [RAY, "list", "nodes", "--address", dashboard, "--format", "json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [node for node in json.loads(listed.stdout or "[]") if node["state"] == "ALIVE"]


def processes(title: str, node: Process) -> list[psutil.Process]:
    """The processes of a node whose title, which Ray sets, holds `title`."""
    found = []
    for process in _below(node):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def _below(node: Process) -> list[psutil.Process]:
    return psutil.Process(node.pid).children(recursive=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_node(*arguments: str) -> Process:
    return subprocess.Popen(
        [
            *(RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"),
            # Where another Ray runs on this machine the usual port is taken, and no job can be started.
            f"--dashboard-agent-listen-port={free_port()}",
            *arguments,
        ],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def ray_job(dashboard: str, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", command, "--address", dashboard, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )


def submit(
    dashboard: str, *arguments: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    directory = ("--working-dir", str(REPOSITORY))
    return ray_job(dashboard, "submit", *directory, *options, "--", "python", *arguments)


def start_driver(address: str, file: Path) -> Process:
    """A run on the cluster in a process of its own, which can be killed; its words are in `<file>.log`."""
    with file.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "influcoder_ray.cli", "run", str(file), "--address", address],
            cwd=REPOSITORY,
            env=environment(),
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_until_there_are(output: Path, pattern: str, number: int, driver: Process) -> list[Path]:
    """The files that match, once there are as many; fails if the driver ends before."""
    deadline = time.monotonic() + 240
    while len(found := list(output.glob(pattern))) < number:
        assert driver.poll() is None, f"the run ended before there were {number} of {pattern}"
        assert time.monotonic() < deadline, f"{len(found)} of {number} {pattern}"
        time.sleep(0.01)
    return found


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def nodes() -> Iterator[RayNodes]:
    """What a fixture yields: the cluster, stopped at its end."""
    cluster = RayNodes()
    try:
        cluster.restore()
        yield cluster
    finally:
        cluster.stop()
