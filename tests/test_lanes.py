"""Lanes: batches side by side, as if one came after the other."""

import threading
from collections.abc import Iterator

import pytest
import torch

from influcoder_ray.lanes import lanes


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Torch's threads as they were before, whatever a test sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "count", "each"), [(1, 1, 1), (3, 3, 1), (12, 6, 2), (13, 6, 2), (16, 8, 2)]
)
def test_cores_are_shared_out_and_given_back(cores: int, count: int, each: int) -> None:
    """Prevents lanes with more threads than there are cores, or few of them, or a worker left with one."""
    torch.set_num_threads(cores)
    meet = threading.Barrier(count)

    def own(_: int) -> tuple[str, int]:
        meet.wait(10)
        return threading.current_thread().name, torch.get_num_threads()

    with lanes() as side_by_side:
        found = list(side_by_side(own, range(count)))
    assert len({name for name, _ in found}) == count
    assert {number for _, number in found} == {each}
    assert torch.get_num_threads() == cores


def test_results_come_in_order_and_inference_mode_holds_where_it_held() -> None:
    """Prevents vectors of one batch under another's rows, and graphs that nobody asked for in a lane."""
    torch.set_num_threads(3)
    first_waits = threading.Event()

    def work(item: int) -> tuple[int, bool]:
        if item:
            first_waits.set()
        else:
            first_waits.wait(10)
        return item, torch.is_inference_mode_enabled()

    with torch.inference_mode(), lanes() as side_by_side:
        assert list(side_by_side(work, range(9))) == [(item, True) for item in range(9)]
    with lanes() as side_by_side:
        assert list(side_by_side(work, range(9))) == [(item, False) for item in range(9)]


def test_a_fault_in_a_lane_is_raised_and_leaves_the_cores_as_they_were() -> None:
    """Prevents a failed batch from being passed over, or the next unit from running on one core."""
    torch.set_num_threads(3)

    def work(item: int) -> int:
        if item == 4:
            raise ValueError("amid")
        return item

    found = []
    with pytest.raises(ValueError, match="amid"), lanes() as side_by_side:
        found.extend(side_by_side(work, range(40)))
    assert torch.get_num_threads() == 3
