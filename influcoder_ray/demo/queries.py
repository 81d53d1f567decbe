"""The demo's queries: questions whose right attributions a person can judge at a glance."""

from importlib import resources

import pyarrow as pa
import yaml

QUERY_SCHEMA = pa.schema(
    [("id", pa.string()), ("prompt", pa.string()), ("response", pa.string()), ("topic", pa.string())]
)


def demo_queries() -> pa.Table:
    """The hand-written queries, one row each.

    Columns (all strings): `id` ("turtle-graphics-2": topic and number within it), `prompt`, `response` and
    `topic`. The rows go round the topics, so that the first n of them are as even a mix of all topics as n
    allows.
    """
    text = resources.files(__package__).joinpath("queries.yaml").read_text(encoding="utf-8")
    rows = [
        (number, {"id": f"{_slug(entry['topic'])}-{number}", **query, "topic": entry["topic"]})
        for entry in yaml.safe_load(text)
        for number, query in enumerate(entry["queries"], start=1)
    ]
    rows.sort(key=lambda numbered: numbered[0])  # stable: within a round, the topics keep the file's order
    return pa.Table.from_pylist([row for _, row in rows], schema=QUERY_SCHEMA)


def _slug(topic: str) -> str:
    return topic.lower().replace(" ", "-")
