import re
from collections import Counter

import pyarrow as pa
import pytest

from influcoder_ray.demo.corpus import standard_library_corpus
from influcoder_ray.demo.queries import QUERY_SCHEMA, demo_queries


@pytest.fixture(scope="module")
def queries() -> pa.Table:
    return demo_queries()


@pytest.fixture(scope="module")
def corpus() -> pa.Table:
    return standard_library_corpus()


def folded(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_ids_and_texts_are_unique(queries: pa.Table) -> None:
    """Prevents a query counted twice, or refused for its id."""
    assert queries.schema.equals(QUERY_SCHEMA)
    assert queries.num_rows >= 90
    for column in ("id", "prompt", "response"):
        assert max(Counter(queries[column].to_pylist()).values()) == 1


def test_each_topic_has_three_queries_and_a_prefix_is_a_fair_mix(queries: pa.Table) -> None:
    """Prevents a demo of the first twenty queries that is about files only."""
    topics = queries["topic"].to_pylist()
    count = len(set(topics))
    assert count >= 30
    for first in range(0, len(topics), count):
        assert topics[first : first + count] == topics[:count]
    assert len(topics) == 3 * count


def test_answers_are_short_and_name_a_function(queries: pa.Table) -> None:
    """Prevents a query on which a person cannot tell a right attribution from a wrong one."""
    for row in queries.to_pylist():
        assert row["prompt"].endswith("?"), row["id"]
        assert 15 <= len(row["response"].split()) <= 40, row["id"]
        assert re.search(r"\w+\.\w+|\w+\(", row["response"]), row["id"]


def test_no_query_shares_content_with_the_corpus(queries: pa.Table, corpus: pa.Table) -> None:
    """Prevents an attribution that only finds the query itself again."""
    for column in ("prompt", "response"):
        known = {folded(text) for text in corpus[column].to_pylist()}
        assert not known & {folded(text) for text in queries[column].to_pylist()}


def test_the_corpus_documents_what_most_answers_name(queries: pa.Table, corpus: pa.Table) -> None:
    """Prevents queries whose right attribution is not in the corpus at all.

    The measure: an answer names either a documented id ("shutil.copytree"), or a documented name of a
    module that it names too ("turtle.forward" for turtle.TNavigator.forward).
    """
    ids = set(corpus["id"].to_pylist())
    last_names = {(name.partition(".")[0], name.rpartition(".")[2]) for name in ids}
    named = 0
    for response in queries["response"].to_pylist():
        dotted = re.findall(r"[a-z_]+(?:\.\w+)+", response)
        documented = [
            name
            for name in dotted
            if name in ids or (name.partition(".")[0], name.rpartition(".")[2]) in last_names
        ]
        named += bool(documented)
    assert named >= 0.9 * queries.num_rows
