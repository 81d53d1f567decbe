"""What became of workers decides which work is tried again."""

from influcoder_ray.stages.casualties import Casualties


def test_three_errors_in_the_same_words_set_work_aside_and_others_do_not() -> None:
    """A lost machine's peers fail too, each in its own words: that must not end a training."""
    past = Casualties()
    for peer in range(8):
        past.raised("worker 0", f"RuntimeError: connection to 10.0.0.{peer} closed")
    past.raised("worker 0", "ValueError: no such layer")
    past.raised("worker 0", "ValueError: no such layer")
    assert not past.record("worker 0").set_aside
    past.raised("worker 1", "ValueError: no such layer")
    assert not past.record("worker 0").set_aside
    past.raised("worker 0", "ValueError: no such layer")
    assert past.record("worker 0").set_aside == "failed 3 times with ValueError: no such layer"
    assert not past.record("worker 1").set_aside
