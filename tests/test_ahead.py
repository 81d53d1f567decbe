"""Work that is done one step ahead."""

import threading
import time

import pytest

from influcoder_ray.ahead import in_order


def test_results_come_in_order_and_only_the_next_one_is_made_meanwhile() -> None:
    """Prevents vectors in another order than their texts, and a thread that fills the memory."""
    begun: list[int] = []
    ready = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            ready.set()
        return item * 10

    results = in_order(work, range(5), threads=1, ahead=2)
    assert next(results) == 0
    assert ready.wait(10), "the next one has to be made while the first is used"
    time.sleep(0.05)
    assert begun == [0, 1]
    assert list(results) == [10, 20, 30, 40]
    assert list(in_order(work, [], threads=1, ahead=2)) == []


def test_a_fault_of_the_thread_is_raised_where_its_result_is_wanted() -> None:
    """Prevents a swallowed fault, which would leave rows without vectors."""

    def work(item: int) -> int:
        if item == 1:
            raise ValueError("item 1")
        return item

    results = in_order(work, range(3), threads=1, ahead=2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(results)
