"""Signals that end a run."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import ray

from influcoder_ray.cli import exit_status_of
from influcoder_ray.errors import Stopped
from influcoder_ray.stopping import listen, stoppable


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back the handlers that were there before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_its_own_status_and_one_line(
    handlers: None, capsys: pytest.CaptureFixture[str], number: signal.Signals, status: int
) -> None:
    """Prevents a stopped run from passing for a failed one, which a cluster would report and try again."""
    listen()

    def command() -> None:
        with stoppable():
            os.kill(os.getpid(), number)
            # The handler runs between two steps of the main thread.
            signal.sigtimedwait([], 5)

    assert exit_status_of(command) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "run the same command again to go on" in said


def test_handlers_are_left_alone_outside_of_the_main_thread(handlers: None) -> None:
    """Prevents a run in a thread of somebody's program from failing: only the main thread may set them."""
    before = signal.getsignal(signal.SIGTERM)
    faults: list[BaseException] = []

    def try_it() -> None:
        try:
            listen()
        except ValueError as error:
            faults.append(error)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert not faults
    assert signal.getsignal(signal.SIGTERM) is before


def test_being_told_to_stop_is_no_failed_attempt() -> None:
    """Prevents code that tries things again after an exception from going on after it was told to end."""
    assert not isinstance(Stopped(signal.SIGTERM), Exception)


def test_a_run_that_waits_for_ray_is_interrupted_at_once(handlers: None, local_ray: None) -> None:
    """Prevents a handler that Ray's waiting calls do not know, and that is heard when the work is done."""
    listen()

    @ray.remote(num_cpus=0)
    def long_work() -> None:
        time.sleep(60)

    timer = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    work = long_work.remote()
    with pytest.raises(Stopped) as stopped, stoppable():
        ray.get(work)
    assert stopped.value.exit_status == 143
    assert not ray.wait([work], timeout=0)[0]
    ray.cancel(work, force=True)
