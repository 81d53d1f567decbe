"""What goes wrong on a worker in a step of its own is told as it would be on the driver."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from influcoder_ray.errors import NoRoom, RunFailed, UserError
from influcoder_ray.stages import cluster


@pytest.mark.parametrize("cause", [UserError("--by: none"), NoRoom("/out: the disk is full"), RunFailed("x")])
def test_what_a_worker_says_of_a_fault_comes_without_its_stack(
    cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a full disk from being told as a worker's whole stack, pressed into a line."""
    raised = RayTaskError("work", "Traceback\n  File x\nNoRoom: /out", cause).as_instanceof_cause()
    assert len(str(raised).splitlines()) > 1

    def get(_: Any) -> None:
        raise raised

    monkeypatch.setattr(
        cluster, "ray", SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=RayTaskError))
    )
    with pytest.raises(type(cause)) as told:
        cluster.result_of(object())
    assert told.value is cause


def test_any_other_fault_of_a_worker_keeps_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the place of a fault in the code from being lost."""
    raised = RayTaskError("work", "Traceback\n  File x\nValueError: y", ValueError("y")).as_instanceof_cause()

    def get(_: Any) -> None:
        raise raised

    monkeypatch.setattr(
        cluster, "ray", SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=RayTaskError))
    )
    with pytest.raises(ValueError, match="Traceback") as told:
        cluster.result_of(object())
    assert told.value is raised
