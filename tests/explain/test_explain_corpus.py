"""The cells of some examples of a run's embeddings, by number."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.explain import corpus as corpora
from influcoder_ray.explain.corpus import Corpus
from influcoder_ray.explain.search import search
from influcoder_ray.stages import embed
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_column
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Output

# Of a row group of our tables, and of the files of the corpus: one ends within a group, one is empty.
GROUP = 4096
SIZES = (GROUP + 10, 0, 3 * GROUP, 5)
ROWS = sum(SIZES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PipelineSettings:
    """Settings of a folder that holds embeddings and nothing else; example n is called e<n>."""
    folder = tmp_path_factory.mktemp("corpus")
    settings = settings_from(
        {
            "output": str(folder / "out"),
            "corpus": {"path": str(folder / "corpus.parquet"), "columns": {"text": "text"}},
            "queries": {"path": str(folder / "queries.parquet"), "columns": {"text": "text"}},
            "model": {"path": "-"},
            "encoder": {"path": "-"},
        },
        source="test",
    )
    vectors = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float16)
    record = embed.state(settings.root)
    record.begin(Fingerprint({"stage": "embed"}))
    first = 0
    for number, size in enumerate(SIZES):
        rows = range(first, first + size)
        column, steps = vector_column(vectors[first : first + size], "float16")
        cells = {
            "example_id": [f"e{row}" for row in rows],
            "source": [f"f:{row}" for row in rows],
            "embedding": column,
            "familiarity": [float(row) for row in rows],
        }
        table = pa.table(cells, schema=schemas.embeddings(4, "float16", steps))
        record.commit(f"u{number}", Output({embed.CORPUS: table}, size, size), 0.0)
        first += size
    record.finish(record.manifests(), {})
    return settings


@given(st.lists(st.integers(0, ROWS - 1), max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cells_are_those_of_the_numbers_in_their_order(run: PipelineSettings, numbers: list[int]) -> None:
    """Prevents an answer that names another example's id or source, at the border of groups and files too."""
    corpus = Corpus(run)
    assert len(corpus) == ROWS
    borders = [0, SIZES[0] - 1, SIZES[0], SIZES[0] + GROUP - 1, SIZES[0] + GROUP, ROWS - 1]
    asked = [*numbers, *borders, *numbers[:2]]
    found = corpus.cells(np.array(asked, np.int64), ["example_id", "familiarity"])
    assert found["example_id"].to_pylist() == [f"e{number}" for number in asked]
    assert found["familiarity"].to_pylist() == [float(number) for number in asked]
    assert corpus.cells(np.empty(0, np.int64), ["source"]).num_rows == 0


def test_a_search_reads_ids_of_the_row_groups_of_its_answer_alone(
    run: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a question from reading a billion ids to name ten of them."""
    read: list[int] = []

    class Watched(pq.ParquetFile):  # type: ignore[misc]
        def read_row_groups(self, groups: list[int], columns: list[str]) -> pa.Table:
            assert "embedding" not in columns
            read.extend(groups)
            return super().read_row_groups(groups, columns=columns)

    monkeypatch.setattr(corpora.pq, "ParquetFile", Watched)
    found = search(run, np.array([1.0, 0.5, 0, 0], np.float32), most=1)
    assert found.rows == ROWS
    # The best and, turned round, the least: a group each for their ids, and for the rest of their cells.
    assert 2 <= len(read) <= 4
