"""The teacher's signals as training reads them."""

import numpy as np

from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages.signals import read_signals


def test_workers_parts_are_the_whole_split_each_example_with_its_own_sketch(
    finished: PipelineSettings,
) -> None:
    """A worker that holds all, or another's rows, trains on what nobody planned and fills its memory."""
    whole = read_signals(finished, "pool", "train")
    assert whole.total == len(whole) == 36
    hashes = [e.content_hash for e in whole.examples]
    assert hashes == sorted(hashes)
    for rank in range(3):
        part = read_signals(finished, "pool", "train", slice(rank, None, 3))
        assert part.total == 36
        assert part.examples == whole.examples[rank::3]
        np.testing.assert_array_equal(part.sketches, whole.sketches[rank::3])
