"""A run that is finished up to `embed` with made-up vectors, and stages that run in this process."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from material import sentences
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import distill, embed, sample, sketch
from influcoder_ray.stages.cluster import Reservation
from influcoder_ray.stages.corpus import corpus_files
from influcoder_ray.stages.work.scan import block_table
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_column
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.json_lines import line_blocks
from influcoder_ray.tables.records import read_records
from influcoder_ray.tables.state import Manifest, Output, StageState

DIMENSIONS = 6
CORPUS_ROWS, QUERY_ROWS = 90, 8
# So that a file of lines is several units.
_BLOCK_BYTES = 2000


def corpus_rows() -> list[dict[str, Any]]:
    """Rows with more columns than a run needs; every ninth says what another one says."""
    texts, answers = sentences(CORPUS_ROWS, 3), sentences(CORPUS_ROWS, 4)
    rows = [
        {
            "id": f"c{i:02}",
            "prompt": texts[i],
            "response": answers[i],
            "label": None if i % 5 == 0 else int(i % 4 == 0),
            "length": 3 + i % 7,
            "extra": {"list": [i, i + 1], "word": f"w{i}"},
        }
        for i in range(CORPUS_ROWS)
    ]
    for i in range(8, CORPUS_ROWS, 9):
        rows[i] |= {"prompt": f" {rows[i - 1]['prompt']}\n", "response": rows[i - 1]["response"]}
    return rows


def query_rows() -> list[dict[str, Any]]:
    texts = sentences(QUERY_ROWS, 13)
    tasks = ["sums", "rivers", "refusal", "sums", "rivers", "refusal", "sums", "sums"]
    return [
        {"id": f"q{i}", "prompt": texts[i], "response": "yes", "task": tasks[i]} for i in range(QUERY_ROWS)
    ]


def vectors_of(rows: int, seed: int) -> np.ndarray:
    """Vectors (rows, d) float16, some of them alike; those of equal contents are equal."""
    generator = np.random.default_rng(seed)
    found = generator.normal(size=(rows, DIMENSIONS)).astype(np.float16)
    found[8::9] = found[7::9][: len(found[8::9])]
    found[2::11] = found[1::11][: len(found[2::11])] + np.float16(0.02)
    return found


def write_corpus(folder: Path, kind: str) -> Path:
    """Files of the same rows, as Parquet or as lines of JSON, one of them with a line that is no JSON.

    They are two, `a` and `b`, or of a kind that begins with `small-` two dozen of four rows.
    """
    rows = corpus_rows()
    place = folder / f"corpus-{kind}"
    place.mkdir(exist_ok=True)
    files = {"a": rows[:50], "b": rows[50:]}
    if kind.startswith("small-"):
        files = {f"{first:02}": rows[first : first + 4] for first in range(0, CORPUS_ROWS, 4)}
    for name, half in files.items():
        if kind.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist(half), place / f"{name}.parquet", row_group_size=15)
            continue
        lines = [json.dumps(row) for row in half]
        if name in ("b", "52"):
            lines.insert(3, "{no json")
        (place / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return place


def made_up_run(settings: PipelineSettings) -> None:
    """Write what the stages up to `embed` would have left."""
    for stage in (sketch, distill):
        record = stage.state(settings.root)
        record.begin(Fingerprint({"stage": record.stage}))
        record.finish({}, {})
    record = sample.state(settings.root)
    corpus = find_data_files(settings.corpus.path, setting="corpus.path")
    record.begin(Fingerprint({"stage": "sample", "corpus": sample.data_fields(settings.corpus, corpus)}))
    query_table = pa.Table.from_pylist(
        [
            {
                "example_id": row["id"],
                "content_hash": f"{i:032}",
                "split": "train",
                "prompt": row["prompt"],
                "response": row["response"],
                "turns": None,
                "source": f"queries.parquet:{i}",
            }
            for i, row in enumerate(query_rows())
        ],
        schema=schemas.EXAMPLES,
    )
    record.commit("queries", Output({sample.QUERIES: query_table}, 0, 0), 0.0)
    for file in corpus:
        if not file.is_parquet:
            found = [(len(b.lines), b.span) for b in line_blocks(file.place, block_bytes=_BLOCK_BYTES)]
            assert len(found) > 2 or file.size_bytes < _BLOCK_BYTES
            blocks = {sample.LINE_BLOCKS: block_table(file.relative, found)}
            record.commit(file.identity, Output(blocks, 0, 0), 0.0)
    record.finish(record.manifests(), {})
    plan = embed.plan(settings)
    record = embed.state(settings.root)
    record.begin(plan.fingerprint)
    for unit_id, table in _embedded(settings, plan.fingerprint).items():
        record.commit(unit_id, Output(table, 0, 0), 0.0)
    record.finish(record.manifests(), {})


def _embedded(settings: PipelineSettings, fingerprint: Fingerprint) -> dict[str, dict[str, pa.Table]]:
    from influcoder_ray.tables.units import plan_units

    def table(
        ids: Sequence[str],
        sources: Sequence[str],
        vectors: np.ndarray,
        texts: np.ndarray,
        kind: str = "float16",
    ) -> pa.Table:
        column, steps = vector_column(vectors, kind)
        columns = {
            "example_id": list(ids),
            "source": list(sources),
            "embedding": column,
            "familiarity": np.full(len(ids), 50, np.float32),
        }
        keeps = settings.keeps_texts
        if keeps:
            columns["text_embedding"], _ = vector_column(texts, "float16")
        text_dimensions = DIMENSIONS if keeps else None
        schema = schemas.embeddings(DIMENSIONS, kind, steps, text_dimensions=text_dimensions)
        return pa.table(columns, schema=schema)

    cut = {"rows_per_unit": settings.embed.rows_per_unit, "fingerprint": fingerprint.digest}
    found: dict[str, dict[str, pa.Table]] = {}
    ids = [row["id"] for row in query_rows()]
    vectors = vectors_of(len(ids), 5)
    (unit,) = plan_units(sample.state(settings.root).data_files(sample.QUERIES), **cut, table=embed.QUERIES)
    found[unit.unit_id] = {embed.QUERIES: table(ids, ids, vectors, vectors_of(len(ids), 15))}
    order = {row["id"]: place for place, row in enumerate(corpus_rows())}
    vectors, texts = vectors_of(CORPUS_ROWS, 6), vectors_of(CORPUS_ROWS, 16)
    for unit in plan_units(corpus_files(settings), **cut, table=embed.CORPUS, joined="counted"):
        records = read_records(unit)
        names = records.table["id"].to_pylist()
        sources = unit.sources(records.rows)
        places = [order[name] for name in names]
        kind = settings.embed.vectors
        found[unit.unit_id] = {embed.CORPUS: table(names, sources, vectors[places], texts[places], kind)}
    return found


def in_this_process(patch: pytest.MonkeyPatch) -> None:
    """Let stages do their units here, one after another, without Ray."""

    def run_units(plan: Any, fingerprint: Fingerprint, *_: Any, **__: Any) -> dict[str, Manifest]:
        plan.state.begin(fingerprint)
        held = plan.state.manifests()
        work = plan.work(**plan.arguments)
        for unit in plan.units:
            if unit.unit_id not in held:
                plan.state.commit(unit.unit_id, work.process(unit, work.read(unit), lambda n: None), 0.0)
        found = plan.state.manifests()
        return {unit.unit_id: found[unit.unit_id] for unit in plan.units}

    def one_unit(
        record: StageState, unit_id: str, work: Any, settings: PipelineSettings, *_: Any, **arguments: Any
    ) -> Manifest:
        held = record.manifests().get(unit_id)
        return held or work(settings, record, unit_id, 1, **arguments)

    patch.setattr("influcoder_ray.stages.units_on_ray.run_units", run_units)
    patch.setattr("influcoder_ray.stages.units_on_ray.one_unit", one_unit)
    patch.setattr("influcoder_ray.stages.cluster.connect", lambda address: None)
    patch.setattr("influcoder_ray.stages.cluster.refuse_guesswork", lambda workers: None)
    patch.setattr("influcoder_ray.stages.cluster.reserve", lambda spec: Reservation(1, 1, 1.0, 0.0, 60.0))


def run(settings: PipelineSettings, *stages: str) -> Mapping[str, Any]:
    return pipeline.run(settings, stages=stages, console=Console(quiet=True))
