"""The device of a worker and the threads of its arithmetic."""

import os

import torch


def own_device() -> torch.device:
    """The GPU that Ray gave this worker, or the CPU.

    A worker that reserved no GPU may still see those of its machine: they are others'. Of one that
    did, the first visible GPU is its own. Without Ray there is none to give one.
    """
    import ray

    given = ray.is_initialized() and ray.get_gpu_ids()
    return torch.device("cuda" if given and torch.cuda.is_available() else "cpu")


def prepare_device(threads: int) -> torch.device:
    """The worker's own device, made ready for models; sets torch's threads, and the tokenizers'."""
    # Workers that hold no model are spared a second of imports.
    from transformers.utils import logging

    # A worker has no terminal: bars would fill its log.
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    device = own_device()
    if device.type == "cuda":
        # One thread makes tokens of some 600 documents a second, and a card embeds more. On a CPU they would
        # take the cores of the arithmetic.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
    return device
