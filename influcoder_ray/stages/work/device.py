"""The device of a worker and the threads of its arithmetic."""

import torch
from transformers.utils import logging


def prepare_device(threads: int) -> torch.device:
    """The GPU that Ray gave this worker, or the CPU; sets torch's threads.

    A worker that reserved no GPU may still see those of its machine: they are others'. Of one that
    did, the first visible GPU is its own.
    """
    import ray

    # A worker has no terminal: bars would fill its log.
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return torch.device("cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")
