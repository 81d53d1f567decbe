"""The device of a worker and the threads of its arithmetic."""

import os

import torch
from transformers.utils import logging


def prepare_device(threads: int) -> torch.device:
    """The GPU that Ray gave this worker, or the CPU; sets torch's threads, and the tokenizers'.

    A worker that reserved no GPU may still see those of its machine: they are others'. Of one that
    did, the first visible GPU is its own. Without Ray there is none to give one.
    """
    import ray

    # A worker has no terminal: bars would fill its log.
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    given = ray.is_initialized() and ray.get_gpu_ids()
    if not (given and torch.cuda.is_available()):
        return torch.device("cpu")
    # One thread makes tokens of some 600 documents a second, and a card embeds more. On a CPU they would take
    # the cores of the arithmetic.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    return torch.device("cuda")
