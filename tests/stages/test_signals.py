"""The teacher's signals as training reads them."""

import tracemalloc
from pathlib import Path

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


def test_sketches_in_a_scratch_folder_are_the_same_and_not_held_in_memory(
    finished: PipelineSettings, tmp_path: Path
) -> None:
    """Prevents a million sketches, 32 GB, from having to fit into a training worker's memory."""
    whole = read_signals(finished, "pool", "train", slice(1, None, 2))
    tracemalloc.start()
    mapped = read_signals(finished, "pool", "train", slice(1, None, 2), scratch=tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(mapped.sketches, np.memmap)
    assert np.array_equal(mapped.sketches, whole.sketches)
    assert (mapped.examples, mapped.total) == (whole.examples, whole.total)
    assert held < whole.sketches.nbytes
    nothing = read_signals(finished, "pool", "train", slice(0, 0), scratch=tmp_path)
    assert nothing.sketches.shape == (0, finished.sketch.width)
