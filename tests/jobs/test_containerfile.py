"""The container file against the files that it names, without building it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import CLUSTERS, ROOT, pinned_versions, project

import influcoder_ray

FILE = CLUSTERS / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction's name and its arguments, continued lines joined."""
    lines = (line for line in FILE.read_text("utf-8").splitlines() if line and not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def copied() -> list[str]:
    """What is copied from the repository, in order."""
    sources = []
    for name, rest in instructions():
        if name == "COPY":
            *found, _target = (word for word in rest.split() if not word.startswith("--"))
            sources += found
    return sources


def commands() -> list[str]:
    return [rest for name, rest in instructions() if name == "RUN"]


def folder() -> str:
    """The working directory of what runs in a container."""
    (found,) = (rest for name, rest in instructions() if name == "WORKDIR")
    return found


def test_the_image_is_built_on_the_one_that_the_launcher_files_start() -> None:
    """Prevents a Ray or a Python that differs between the ways to launch, or from what CI tested."""
    (base,) = (rest for name, rest in instructions() if name == "FROM")
    for path in (ROOT / "cluster.yaml", CLUSTERS / "gcp.yaml"):
        assert yaml.safe_load(path.read_text("utf-8"))["docker"]["image"] == base
    found = re.fullmatch(r"rayproject/ray:(?P<ray>[\d.]+)-py(?P<major>\d)(?P<minor>\d+)-gpu", base)
    assert found
    assert found["ray"] == pinned_versions()["ray"]
    assert f"on Python {found['major']}.{found['minor']}" in (ROOT / "constraints.txt").read_text("utf-8")
    assert project()["requires-python"] == f">={found['major']}.{found['minor']}"


def test_all_that_pip_installs_keeps_to_the_constraints() -> None:
    """Prevents an image with versions that nobody tested."""
    installs = re.findall(r"pip install ([^&]*)", " && ".join(commands()))
    assert [words.split()[-1] for words in installs] == ["requirements.txt", "."]
    assert all("-c constraints.txt" in words for words in installs)


def test_the_layer_of_dependencies_holds_those_of_the_project(tmp_path: Path) -> None:
    """Prevents a command that writes another list, or none: it is run here as it stands in the file."""
    (command,) = (line.partition(" && ")[0] for line in commands() if "tomllib" in line)
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    assert (tmp_path / "requirements.txt").read_text("utf-8").splitlines() == project()["dependencies"]


def test_what_is_copied_is_there_and_is_all_that_a_build_of_the_package_reads() -> None:
    """Prevents an image that cannot be built since a file was moved."""
    assert all((ROOT / source).exists() for source in copied())
    needed = {"pyproject.toml", "constraints.txt", project()["readme"], *project()["license-files"]}
    assert needed | {"influcoder_ray", "jobs"} == set(copied())


def test_the_code_is_copied_after_its_dependencies_were_installed() -> None:
    """Prevents gigabytes from being installed and pushed anew for each change of a line."""
    order = [name if name != "COPY" else rest for name, rest in instructions()]
    (code,) = (i for i, step in enumerate(order) if "influcoder_ray influcoder_ray" in step)
    assert order[:code].count("RUN") == 2
    assert order[code + 1] == "RUN"


def test_the_job_on_kubernetes_starts_where_the_image_has_the_scripts() -> None:
    """Prevents a submission from a folder that the image does not have."""
    job = yaml.safe_load((CLUSTERS / "kuberay" / "rayjob.yaml").read_text("utf-8"))
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"working_dir": folder()}
    assert ("COPY", "--chown=1000:100 jobs jobs") in instructions()
    assert job["spec"]["entrypoint"].split()[1].startswith("jobs/")


@pytest.mark.parametrize("path", ["jobs/clusters/Containerfile", "README.md"])
def test_the_image_is_tagged_with_the_release_that_is_in_it(path: str) -> None:
    """Prevents instructions that build one tag and manifests that start another."""
    tags = set(re.findall(r"--tag (\S+)", (ROOT / path).read_text("utf-8")))
    assert tags == {f"registry.example.com/influcoder-ray:{influcoder_ray.__version__}"}
