"""The estimate is work divided by speed, whatever both are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.planning.arithmetic import Estimate, estimate
from influcoder_ray.planning.speed import Speeds
from influcoder_ray.planning.table import as_json
from influcoder_ray.planning.work import Kind, Work

SPEEDS = Speeds({"scan": 1e4, "gradients": 1e12, "encoder": 3e12, "training": 2e12, "search": 1e10})
KINDS: tuple[Kind, ...] = ("scan", "gradients", "encoder", "training", "search")
AMOUNTS = st.dictionaries(st.sampled_from(KINDS), st.floats(1, 1e15), max_size=4)


def work(units: int, shared: dict[Kind, float], alone: dict[Kind, float] | None = None) -> Work:
    return Work("sketch", units=units, shared=shared, shared_units=units, alone=alone or {})


def of(one: Work, *workers: int, price: float | None = None, speeds: Speeds = SPEEDS) -> Estimate:
    return estimate([one], speeds, workers=workers, price_per_hour=price)


@given(AMOUNTS, st.integers(1, 500), st.integers(1, 64))
@settings(deadline=None)
def test_workers_divide_the_time_down_to_one_unit_each(
    amounts: dict[Kind, float], units: int, workers: int
) -> None:
    """Prevents a promise that no number of workers could keep, and one that a single worker beats."""
    found = of(work(units, amounts), 1, workers, units, 10 * units)
    one = found.wall_seconds(1)
    assert one == pytest.approx(found.device_seconds)
    assert one / workers * (1 - 1e-9) <= found.wall_seconds(workers) <= one * (1 + 1e-9)
    # No worker is idle for longer than one unit takes.
    assert found.wall_seconds(workers) <= (one / workers + one / units) * (1 + 1e-9)
    assert found.wall_seconds(units) == pytest.approx(one / units)
    assert found.wall_seconds(10 * units) == found.wall_seconds(units)


@given(AMOUNTS, AMOUNTS, st.integers(1, 50), st.floats(0, 1e4), st.floats(0.001, 100))
@settings(deadline=None)
def test_the_price_is_proportional_and_waiting_workers_only_add_to_it(
    shared: dict[Kind, float], alone: dict[Kind, float], units: int, start: float, price: float
) -> None:
    """Prevents money that does not follow from the time, or that idle workers would bring back."""
    speeds = Speeds(SPEEDS.per_second, {"sketch": start})
    once = of(work(units, shared, alone), 1, 7, price=price, speeds=speeds)
    thrice = of(work(units, shared, alone), 1, 7, price=3 * price, speeds=speeds)
    assert once.cost == pytest.approx(once.device_seconds / 3600 * price)
    assert thrice.cost == pytest.approx(3 * (once.cost or 0))
    assert once.cost_with(1) == pytest.approx(once.cost)
    assert (once.cost_with(7) or 0) >= (once.cost or 0) * (1 - 1e-9)


@given(AMOUNTS, st.floats(1, 100))
@settings(deadline=None)
def test_twice_the_speed_is_half_the_time(amounts: dict[Kind, float], factor: float) -> None:
    """Prevents a speed that is multiplied by where it divides."""
    faster = Speeds({kind: speed * factor for kind, speed in SPEEDS.per_second.items()})
    one = work(4, amounts)
    assert of(one, 1, speeds=faster).wall_seconds(1) * factor == pytest.approx(of(one, 1).wall_seconds(1))


def test_what_one_worker_does_alone_is_not_divided_and_every_worker_starts() -> None:
    """Prevents a serial step, or the loading of a model, from vanishing among many workers."""
    speeds = Speeds({"gradients": 10.0, "encoder": 1.0}, {"sketch": 5.0}, {"sketch": 2.0})
    found = of(work(4, {"gradients": 200.0}, {"encoder": 3.0}), 1, 3, 4, price=3600.0, speeds=speeds)
    assert [found.wall_seconds(count) for count in (1, 3, 4)] == [5 + 6 + 40, 5 + 6 + 20, 5 + 6 + 10]
    assert found.device_seconds == 51
    # Three workers start, and one of them waits while the last unit is done.
    assert found.cost_with(3) == pytest.approx(3 * (5 + 20) + 6)


def test_without_a_price_there_is_no_money() -> None:
    """Prevents a plan that seems to be free."""
    found = of(work(4, {"gradients": 200.0}), 1)
    assert (found.cost, found.cost_with(1), found.stages[0].cost) == (None, None, None)


def test_floating_point_operations_are_those_of_models_and_search_alone() -> None:
    """Prevents rows from being added to FLOPs."""
    one = work(2, {"scan": 7.0, "gradients": 100.0}, {"encoder": 20.0, "search": 3.0})
    assert one.flops == 123
    assert estimate([one, one], SPEEDS, workers=[1]).flops == 246


def test_objects_and_requests_follow_from_the_units_where_they_are_counted() -> None:
    """Prevents a plan of a million units that says nothing of what S3 will hold and bill."""
    works = [
        Work(stage, units=1000, shared={}, shared_units=1000) for stage in ("embed", "attribute", "sketch")
    ]
    stages = as_json(estimate(works, SPEEDS, workers=[1]), [1], [])["stages"]
    assert (stages["embed"]["objects"], stages["attribute"]["objects"]) == (2000, 4000)
    assert stages["embed"]["write_requests"] == 2000
    assert stages["attribute"]["read_requests"] > stages["embed"]["read_requests"] > 2000
    assert stages["sketch"]["objects"] is None
