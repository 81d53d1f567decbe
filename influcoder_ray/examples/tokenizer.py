"""A model's tokenizer from its folder."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from influcoder_ray.errors import UserError


def load_tokenizer(folder: str, *, setting: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer that a model's folder holds.

    Args:
        setting: the setting that holds `folder`, for the error's first words.

    Raises:
        UserError: the folder holds none.
    """
    none = UserError(f"{setting}: {folder} holds no tokenizer; give a folder with tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise none from error
    # Without its files some classes give a tokenizer that knows no word, and say nothing.
    files = tokenizer.vocab_files_names.values()
    if files and not any((Path(folder) / file).is_file() for file in (*files, "tokenizer.json")):
        raise none
    return tokenizer
