"""The model and the rows of a benchmark: a user's own, or random ones of a given shape."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from influcoder_ray.errors import UserError
from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import adapter_weights, find_targets
from influcoder_ray.gradients.loading import arithmetic_dtype, weights_dtype
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import DataFile, find_data_files, require_columns
from influcoder_ray.tables.units import plan_units

# What the columns of instruction data are called, in the order in which they are looked for.
_USUAL_COLUMNS = (
    ColumnSpec(prompt="prompt", response="response"),
    ColumnSpec(prompt=("instruction", "context"), response="response"),
    ColumnSpec(prompt="instruction", response="response"),
    ColumnSpec(prompt="question", response="answer"),
    ColumnSpec(text="text"),
)
_ROWS_AT_ONCE = 64


def random_teacher(
    config: str, spec: ModelSpec, adapter: AdapterSpec, *, seed: int, device: torch.device
) -> Teacher:
    """A teacher with seeded random weights of a config's shape, made on the device, and no tokenizer.

    Args:
        config: a config.json, or a folder with one.

    Raises:
        UserError: there is no config, or none of a causal LM.
    """
    path = Path(config)
    if not (path if path.is_file() else path / "config.json").is_file():
        raise UserError(f"--random-weights: {config} is no config.json and no folder with one")
    try:
        shape = AutoConfig.from_pretrained(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"--random-weights: {config} is no model's config ({str(error).splitlines()[0]})"
        ) from error
    targets = find_targets(shape, adapter)
    dtype = arithmetic_dtype(weights_dtype(spec), device)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype).eval().requires_grad_(False)
    weights = adapter_weights(targets, adapter, seed=seed, device=device, dtype=dtype)
    return Teacher(model, None, weights, spec)


def random_tokens(vocabulary: int, *, count: int, shortest: int, longest: int, seed: int) -> list[Tokens]:
    """Examples of random token ids, as many as drawn for each, with the loss on all but the first."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    rows = (torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths)
    return [Tokens(tuple(row), 1, False) for row in rows]


def read_tokens(
    teacher: Teacher, rows: str, columns: ColumnSpec | None, *, count: int, min_tokens: int
) -> list[Tokens]:
    """The tokens of the first `count` rows that have at least `min_tokens` and a labelled one.

    Longer rows are cut by the teacher's window.

    Args:
        rows: a file, a folder or a glob of Parquet or JSON Lines.
        columns: None finds the usual ones.

    Raises:
        UserError: there are fewer such rows, or not the columns.
    """
    files = find_data_files(rows, setting="--rows")
    columns = columns or _usual_columns(files)
    require_columns(files, columns.names, setting="--rows")
    kept: list[Tokens] = []
    for examples in _examples(files, columns):
        tokens = teacher.tokens(examples)
        kept += [t for t in tokens if t.labelled > 0 and len(t.ids) >= min_tokens]
        if len(kept) >= count:
            return kept[:count]
    raise UserError(
        f"--rows: {rows} holds {len(kept)} rows of {min_tokens} tokens or more, fewer than {count}; "
        "lower --count or --min-tokens"
    )


def read_examples(rows: Sequence[str], columns: ColumnSpec | None, *, count: int) -> list[Example]:
    """`count` usable rows, one of each path in turn until a path has no more.

    Args:
        rows: files, folders or globs of Parquet or JSON Lines.
        columns: None finds the usual ones, in each path its own.

    Raises:
        UserError: there are fewer such rows, or not the columns.
    """
    sources = []
    for path in rows:
        files = find_data_files(path, setting="--rows")
        named = columns or _usual_columns(files)
        require_columns(files, named.names, setting="--rows")
        sources.append(chain.from_iterable(_examples(files, named)))
    found: list[Example] = []
    while sources and len(found) < count:
        left = []
        for source in sources:
            example = next(source, None)
            if example is not None:
                found.append(example)
                left.append(source)
        sources = left
    if len(found) < count:
        raise UserError(
            f"--rows: {', '.join(rows)} holds {len(found)} usable rows, fewer than {count}; lower --count"
        )
    return found[:count]


def _usual_columns(files: Sequence[DataFile]) -> ColumnSpec:
    for columns in _USUAL_COLUMNS:
        if all(set(columns.names) <= set(file.columns) for file in files):
            return columns
    raise UserError(
        f"--rows: {files[0].place} has the columns {', '.join(files[0].columns)}; say which hold what with "
        "--prompt and --response, or --text"
    )


def _examples(files: Sequence[DataFile], columns: ColumnSpec) -> Iterator[list[Example]]:
    """Usable examples in the files' order, some at a time."""
    for unit in plan_units(files, rows_per_unit=1, fingerprint=""):
        cells = read_cells(unit, columns.names)
        for first in range(0, len(cells), _ROWS_AT_ONCE):
            part = cells.at(cells.rows[first : first + _ROWS_AT_ONCE])
            examples, _ = examples_from_cells(part, columns, relative=unit.piece.relative)
            yield examples
