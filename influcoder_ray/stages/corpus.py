"""The corpus's files as the stages after `sample` cut them into units."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace

from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import sample
from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import DataFile


def corpus_files(
    settings: PipelineSettings, *, identify: bool = True, only: Collection[str] | None = None
) -> list[DataFile]:
    """The files of the corpus; of JSON Lines with the blocks that `sample` found when it read them.

    Without them a file of JSON Lines could only be one unit, whatever its size.

    Args:
        identify, only: as for `DataSpec.files`.

    Raises:
        UserError: there is no corpus, or a file of it cannot be read.
    """
    files = settings.corpus.files("corpus", identify=identify, only=only)
    record = sample.state(settings.root)
    held = record.fingerprint()
    if held is None or all(file.is_parquet for file in files):
        return files
    if identify and held.fields.get("corpus") != sample.data_fields(settings.corpus, files):
        # Blocks of a corpus that has changed since would be torn lines.
        return files
    blocks: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    found = record.read(sample.LINE_BLOCKS, schemas.LINE_BLOCKS)
    for name, rows, start, end in zip(*(found[name].to_pylist() for name in found.column_names), strict=True):
        blocks[name].append((start, end, rows))
    return [_with_blocks(file, sorted(blocks.get(file.relative, ()))) for file in files]


def _with_blocks(file: DataFile, blocks: list[tuple[int, int, int]]) -> DataFile:
    if file.is_parquet or not blocks:
        return file
    return replace(
        file,
        row_groups=tuple(rows for _, _, rows in blocks),
        offsets=(*(start for start, _, _ in blocks), blocks[-1][1]),
    )
