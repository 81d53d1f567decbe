"""What a worker tells Prometheus through Ray: how fast it is, how long its device waits, what is done."""

import threading
import time

from ray.util.metrics import Counter, Gauge

from influcoder_ray.tables.state import Output

# Ray puts `ray_` in front of each name, and `_total` behind a counter's.
EXAMPLES_PER_SECOND = "influcoder_examples_per_second"
TOKENS_PER_SECOND = "influcoder_tokens_per_second"
GPU_IDLE_FRACTION = "influcoder_gpu_idle_fraction"
SHARDS_DONE = "influcoder_shards_done"
ROWS_QUARANTINED = "influcoder_rows_quarantined"
_OF_STAGE = ("stage",)


class UnitMetrics:
    """The metrics of one worker of a stage; each carries the stage's name as a label.

    Speeds are those from the end of one unit to the end of the next, so that reading and writing that the
    device waits for show in them; the idle fraction is the part of that time in which nothing was computed
    (on workers without a GPU: the CPU's). The first unit is measured from when the models were loaded.
    """

    def __init__(self, stage: str) -> None:
        gauges = {
            EXAMPLES_PER_SECOND: "Rows in of a worker's last unit, a second.",
            TOKENS_PER_SECOND: "Tokens of a worker's last unit, a second; 0 for stages without tokens.",
            GPU_IDLE_FRACTION: "Share of the time of a worker's last unit in which its device did nothing.",
        }
        counters = {
            SHARDS_DONE: "Units that a worker has committed.",
            ROWS_QUARANTINED: "Rows that a worker has set aside.",
        }
        self._gauges = {name: Gauge(name, text, _OF_STAGE) for name, text in gauges.items()}
        self._counters = {name: Counter(name, text, _OF_STAGE) for name, text in counters.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags({"stage": stage})
        self._counting = threading.Lock()
        self._last_end = time.monotonic()

    def unit_done(self, output: Output, computing_seconds: float) -> None:
        """Count a unit that has just been committed."""
        # Units overlap, each on a thread of its own.
        with self._counting:
            now = time.monotonic()
            seconds, self._last_end = now - self._last_end, now
        for name, value in figures(output, computing_seconds, seconds).items():
            self._gauges[name].set(value)
        self._counters[SHARDS_DONE].inc(1)
        # A counter refuses to be increased by nothing.
        if output.quarantine is not None and output.quarantine.num_rows:
            self._counters[ROWS_QUARANTINED].inc(output.quarantine.num_rows)


def figures(output: Output, computing_seconds: float, seconds: float) -> dict[str, float]:
    """The value of each gauge after a unit.

    Args:
        computing_seconds: how long the unit was computed.
        seconds: since the end of the unit before; units that overlap may have computed for longer.
    """
    elapsed = max(seconds, 1e-9)
    return {
        EXAMPLES_PER_SECOND: output.rows_in / elapsed,
        TOKENS_PER_SECOND: output.counters.get("tokens", 0.0) / elapsed,
        GPU_IDLE_FRACTION: min(1.0, max(0.0, 1 - computing_seconds / elapsed)),
    }
