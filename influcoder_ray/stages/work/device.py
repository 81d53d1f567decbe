"""The device of a worker and the threads of its arithmetic."""

import torch
from transformers.utils import logging


def prepare_device(threads: int) -> torch.device:
    """The GPU that Ray gave this process, or the CPU; sets torch's threads.

    Ray hides the GPUs that are not this worker's, so the first visible one is its own.
    """
    # A worker has no terminal: bars would fill its log.
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
