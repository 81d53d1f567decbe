"""Sample: a seeded choice of pool and queries by content, split by content into train, validation, test."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.data import DataSpec
from influcoder_ray.examples.example import from_table, to_table
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.work.scan import ScanWork, seeded_key, smallest
from influcoder_ray.tables import schemas
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import DataFile, require_columns, require_types
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import plan_units

POOL, QUERIES = "sample/pool", "sample/queries"
_POOL_CANDIDATES, _QUERY_CANDIDATES = "_state/sample/pool", "_state/sample/queries"
# Of each file of lines by itself, and of all of them together, as the later stages read it.
_BLOCKS_OF_FILES, LINE_BLOCKS = "_state/sample/blocks_of_files", "_state/sample/line_blocks"
# Of a data set whose ids are looked through for one that stands twice: rows of Parquet, and bytes of lines.
MOST_CHECKED_ROWS, MOST_CHECKED_BYTES = 10_000_000, 1 << 30
_SMALLEST = 10
# Small row groups, so that later stages can cut the sample into units of any size.
ROWS_PER_GROUP = 16


def state(root: Place) -> StageState:
    scanned = (_POOL_CANDIDATES, _QUERY_CANDIDATES, _BLOCKS_OF_FILES)
    return StageState(root, "sample", (POOL, QUERIES, LINE_BLOCKS, *scanned))


def check(settings: PipelineSettings) -> None:
    """Refuse data that cannot be used: missing, without the named columns, empty, with ids twice, or in a
    folder to which the run itself would write.

    Raises:
        UserError: the first of these.
    """
    for setting, data in (("corpus", settings.corpus), ("queries", settings.queries)):
        if f"{settings.root}/".startswith(f"{data.path.rstrip('/')}/"):
            raise UserError(
                f"output: {settings.root} lies in {setting}.path, where all files are read, so that the run "
                "would read what it writes; give a folder outside of it"
            )
        files = data.files(setting)
        require_columns(files, data.columns.names, setting=f"{setting}.columns")
        require_types(files, data.columns.kinds, setting=f"{setting}.columns")
        _refuse_empty(files, data, setting)
        _refuse_repeated_ids(files, data, setting)


def plan(settings: PipelineSettings) -> StagePlan:
    corpus, queries = settings.corpus.files("corpus"), settings.queries.files("queries")
    fingerprint = Fingerprint(
        {
            "stage": "sample",
            "scheme": "bottom-k-1",
            "seed": settings.seed,
            "corpus": data_fields(settings.corpus, corpus),
            "queries": data_fields(settings.queries, queries),
            "sample": settings.sample.model_dump(mode="json"),
        }
    )
    rows_per_unit = settings.sample.rows_per_unit
    files = {_QUERY_CANDIDATES: queries, _POOL_CANDIDATES: corpus}
    units = {
        table: plan_units(
            own, rows_per_unit=rows_per_unit, fingerprint=fingerprint.digest, table=table, joined="all"
        )
        for table, own in files.items()
    }
    # Of row groups in which no row can meet the conditions, which are in no unit.
    unread = {
        table: sum(sum(file.row_groups or ()) for file in own) - sum(unit.rows or 0 for unit in units[table])
        for table, own in files.items()
    }
    record = state(settings.root)
    scanned = [unit.unit_id for part in units.values() for unit in part]
    closing = f"sample-{digest_of(scanned)[:16]}"

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, run_units

        reservation = reserve(settings.workers.sample)
        manifests: dict[str, Manifest] = {}
        taken: list[str] = []
        for table, data, count in (
            (_QUERY_CANDIDATES, settings.queries, settings.sample.queries),
            (_POOL_CANDIDATES, settings.corpus, settings.sample.pool),
        ):
            arguments = {
                "columns": data.columns,
                "count": count,
                "seed": settings.seed,
                "apart_from": taken,
                "stage": record.stage,
                "line_blocks": _BLOCKS_OF_FILES if table == _POOL_CANDIDATES else None,
            }
            work = WorkPlan(record, units[table], ScanWork, arguments)
            found = run_units(work, fingerprint, reservation, display)
            if data.where:
                setting = "queries" if table == _QUERY_CANDIDATES else "corpus"
                display.say(f"  {_meeting(data, setting, found, unread[table])}")
            manifests |= found
            if table == _QUERY_CANDIDATES:
                taken = contents_of_queries(settings)
        shared = sum(m.counters.get("shared_with_queries", 0) for m in manifests.values())
        if shared and settings.sample.shared_content == "refuse":
            raise UserError(
                f"queries.path: {shared:.0f} corpus rows have the content of a query; take them out, or set "
                "sample.shared_content to keep"
            )
        unusable = {
            table: sum(manifests[unit.unit_id].rows_quarantined for unit in part)
            for table, part in units.items()
        }
        chosen = replace(
            _choose(settings, record, unusable, int(shared)), counters={"left_out": sum(unread.values())}
        )
        manifests[closing] = record.commit(closing, chosen, 0.0)
        return manifests

    return StagePlan(record, fingerprint, (*scanned, closing), run)


def _meeting(data: DataSpec, setting: str, found: Mapping[str, Manifest], unread: int) -> str:
    """How many rows of a data set meet its conditions, as a line.

    Raises:
        UserError: none does.
    """
    meeting = sum(manifest.rows_in for manifest in found.values())
    rows = meeting + unread + sum(int(manifest.counters["left_out"]) for manifest in found.values())
    if not meeting:
        raise UserError(
            f"{setting}.where: none of the {rows:,} rows of {data.path} meets it ({data.says_where}); "
            "loosen the conditions"
        )
    return f"{meeting:,} of {rows:,} rows meet {setting}.where"


def data_fields(data: DataSpec, files: Sequence[DataFile]) -> dict[str, Any]:
    """What of a data set decides numbers: its files' contents and names, its columns and conditions."""
    fields: dict[str, Any] = {
        "files": digest_of([[file.relative, file.identity] for file in files]),
        "file_count": len(files),
        "columns": data.columns.model_dump(mode="json"),
    }
    conditions = data.model_dump(mode="json", include={"where"})
    return fields | conditions if data.where else fields


def contents_of_queries(settings: PipelineSettings) -> list[str]:
    """The content hashes of all queries, in the sample or not: none may be in the pool's sample."""
    record = state(settings.root)
    hashes = record.read(_QUERY_CANDIDATES, schemas.EXAMPLES, ["content_hash"])["content_hash"]
    return sorted(set(hashes.to_pylist()))


def splits(examples: Sequence[Example], seed: int, validation_share: float, test_share: float) -> list[str]:
    """The split of each example (N,), by rank of a hash of its content: the shares are met exactly."""
    count = len(examples)
    _, validation, test = split_sizes(count, validation_share, test_share)
    order = sorted(range(count), key=lambda i: seeded_key(seed, "split", examples[i].content_hash))
    names = ["train"] * count
    for rank, index in enumerate(order):
        if rank < test + validation:
            names[index] = "test" if rank < test else "validation"
    return names


def split_sizes(count: int, validation_share: float, test_share: float) -> tuple[int, int, int]:
    """How many of `count` examples are for training, for validation and for the test."""
    test = max(2, round(test_share * count))
    validation = max(2, round(validation_share * count))
    return count - validation - test, validation, test


def _choose(
    settings: PipelineSettings, record: StageState, unusable: Mapping[str, int], shared: int
) -> Output:
    """The sample, out of the candidates of both sides, with where the lines of JSON stand.

    Args:
        unusable: rows that went to the quarantine, by the table of candidates.
        shared: rows of the corpus that are left out of the pool, for they have the content of a query.

    Raises:
        UserError: one side has too few examples.
    """
    blocks = record.read(_BLOCKS_OF_FILES, schemas.LINE_BLOCKS)
    tables = {LINE_BLOCKS: blocks} if blocks.num_rows else {}
    for table, candidates, count, setting in (
        (QUERIES, _QUERY_CANDIDATES, settings.sample.queries, "queries.path"),
        (POOL, _POOL_CANDIDATES, settings.sample.pool, "corpus.path"),
    ):
        examples = from_table(record.read(candidates, schemas.EXAMPLES))
        chosen = smallest(examples, settings.seed, count)
        also_queries = shared if table == POOL else 0
        refuse_too_few(setting, len(chosen), unusable[candidates], also_queries, record.root / "quarantine")
        names = splits(chosen, settings.seed, settings.sample.validation_share, settings.sample.test_share)
        tables[table] = to_table(chosen, names)
    return Output(tables, rows_in=0, rows_out=0, rows_per_group=ROWS_PER_GROUP)


def refuse_too_few(setting: str, usable: int, unusable: int, shared: int, quarantine: Place) -> None:
    """Refuse a side of which too few different contents are left, and say where the others are.

    Raises:
        UserError: naming the setting that holds the data.
    """
    if usable < _SMALLEST:
        others = f"; {shared:,} more have the content of a query" if shared else ""
        others += f"; {quarantine} says why {unusable:,} rows cannot be used" if unusable else ""
        raise UserError(
            f"{setting}: only {usable} different usable rows, too few to train and test on; "
            f"give at least {_SMALLEST}{others}"
        )


def _refuse_empty(files: Sequence[DataFile], data: DataSpec, setting: str) -> None:
    """Refuse a data set that holds nothing, or JSON that is not lines of objects."""
    if any(sum(file.row_groups or ()) or (not file.is_parquet and file.columns) for file in files):
        return
    lines = next((file for file in files if file.size_bytes), None)
    if lines is not None:
        raise UserError(
            f"{setting}.path: no first line of {lines.place} is a JSON object; write one object a line"
        )
    raise UserError(f"{setting}.path: {data.path} holds no rows; give data files with at least some")


def _refuse_repeated_ids(files: Sequence[DataFile], data: DataSpec, setting: str) -> None:
    """Refuse ids that stand twice, in data sets of which the ids can be read before anything else is done."""
    column = data.columns.id
    if column is None or not _are_few(files):
        return
    whole = plan_units(files, rows_per_unit=1 << 62, fingerprint="")
    parts = []
    for unit in whole:
        values = read_cells(unit, [column])[column]
        parts.append(
            pa.array([_as_bytes(v) for v in values if isinstance(v, str | bytes | int)], pa.binary())
        )
    counts = pc.value_counts(pa.chunked_array(parts, pa.binary()))
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        example_id = repeated[0]["values"].as_py().decode(errors="replace")
        raise UserError(
            f"{setting}.columns.id: {len(repeated)} ids of column {column!r} stand more than once, for "
            f"example {example_id!r}; give a column of unique ids, or none"
        )


def _are_few(files: Sequence[DataFile]) -> bool:
    rows = sum(sum(file.row_groups or ()) for file in files)
    # Lines have to be parsed to have their ids.
    lines = sum(file.size_bytes for file in files)
    return rows <= MOST_CHECKED_ROWS and lines <= MOST_CHECKED_BYTES


def _as_bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
