"""The cells of some examples of a run's embeddings, by number."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedded_corpus import embedded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influcoder_ray.config import PipelineSettings
from influcoder_ray.explain import corpus as corpora
from influcoder_ray.explain.corpus import Corpus
from influcoder_ray.explain.search import search

# Of a row group of our tables, and of the files of the corpus: one ends within a group, one is empty.
GROUP = 4096
SIZES = (GROUP + 10, 0, 3 * GROUP, 5)
ROWS = sum(SIZES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PipelineSettings:
    """Settings of a folder that holds embeddings and nothing else; example n is called e<n>."""
    vectors = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float16)
    ids = [f"e{row}" for row in range(ROWS)]
    return embedded(tmp_path_factory.mktemp("corpus"), np.split(vectors, np.cumsum(SIZES)[:-1]), ids=ids)


@given(st.lists(st.integers(0, ROWS - 1), max_size=12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cells_are_those_of_the_numbers_asked_for(run: PipelineSettings, numbers: list[int]) -> None:
    """Prevents an answer that names another example's id or source, at the border of groups and files too."""
    corpus = Corpus(run)
    assert len(corpus) == ROWS
    borders = [0, SIZES[0] - 1, SIZES[0], SIZES[0] + GROUP - 1, SIZES[0] + GROUP, ROWS - 1]
    asked = [*numbers, *borders, *numbers[:2]]
    found = corpus.cells(np.array(asked, np.int64))
    assert found == {
        number: {
            "example_id": f"e{number}",
            "source": f"embeddings.parquet:{number}",
            "familiarity": number % 100,
        }
        for number in asked
    }
    assert corpus.cells(np.empty(0, np.int64)) == {}


def test_a_search_reads_ids_of_the_row_groups_of_its_answer_alone(
    run: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a question from reading a billion ids to name ten of them."""
    read: list[int] = []

    class Watched(pq.ParquetFile):  # type: ignore[misc]
        def read_row_group(self, group: int, columns: list[str]) -> pa.Table:
            if columns != ["embedding"]:
                assert "embedding" not in columns
                read.append(group)
            return super().read_row_group(group, columns=columns)

    monkeypatch.setattr(corpora.pq, "ParquetFile", Watched)
    found = search(run, np.array([1.0, 0.5, 0, 0], np.float32), most=1)
    assert found.rows == ROWS
    # That of the best and that of the least, which a search from below has found too; neither twice.
    assert 1 <= len(read) <= 2
