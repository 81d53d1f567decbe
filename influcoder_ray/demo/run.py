"""The demo: what of Python's own documentation moves a small language model towards an answer."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.demo.corpus import standard_library_corpus
from influcoder_ray.demo.facts import small_facts
from influcoder_ray.demo.queries import demo_queries
from influcoder_ray.demo.weights import fetch_causal_lm, fetch_encoder

# On two cores; only the time left that is shown depends on these.
_EXPECTED_SECONDS = {
    "sample": 6.0,
    "sketch": 85.0,
    "distill": 65.0,
    "embed": 30.0,
    "attribute": 4.0,
    "evaluate": 15.0,
    "report": 2.0,
}
_HOW_TO_QUERIES = 48
_SHOWN_QUERIES, _SHOWN_EXAMPLES = 6, 3


def run_demo(output: str, console: Console) -> None:
    """Write the corpus and the queries, fetch the models, run every stage, show what came out.

    Raises:
        UserError: the models cannot be fetched, or the folder holds another run.
        RunFailed: a stage did not finish.
    """
    folder = Path(output).absolute()
    console.print("influcoder-ray demo: which texts teach a small model to answer questions on Python?")
    model = fetch_causal_lm(lambda text: console.print(text, highlight=False))
    encoder = fetch_encoder(lambda text: console.print(text, highlight=False))
    settings = demo_settings(folder, model, encoder)
    corpus, queries = demo_data()
    _write(folder / "corpus.parquet", corpus)
    _write(folder / "queries.parquet", queries)
    pipeline.run(settings, console=console, expected_seconds=_EXPECTED_SECONDS)
    _show(settings, console)


def demo_data() -> tuple[pa.Table, pa.Table]:
    """Corpus and queries, each with id, prompt and response.

    The corpus is the documentation of Python's functions and classes, and small facts; the queries
    are questions on the one and held-out members of the other.
    """
    facts = small_facts()
    names = facts.corpus.schema.names
    documented = standard_library_corpus()
    # Methods are left out: more than all else together, and each much like its class.
    documented = documented.filter(pc.is_in(documented["kind"], pa.array(["function", "class"])))
    corpus = pa.concat_tables([documented.select(names), facts.corpus])
    how_to = demo_queries().select(names)[:_HOW_TO_QUERIES]
    return corpus, pa.concat_tables([how_to, facts.queries])


def demo_settings(folder: Path, model: Path, encoder: Path) -> PipelineSettings:
    """The demo's settings: small enough for two cores and six minutes."""
    columns = {"id": "id", "prompt": "prompt", "response": "response"}
    return settings_from(
        {
            "output": str(folder),
            "corpus": {"path": str(folder / "corpus.parquet"), "columns": columns},
            "queries": {"path": str(folder / "queries.parquet"), "columns": columns},
            "model": {"path": str(model), "template": "plain", "max_tokens": 96, "tokens_per_batch": 768},
            "adapter": {"rank": 8},
            "sketch": {"width": 16384, "rows_per_unit": 48},
            "sample": {"pool": 200, "validation_share": 0.15, "test_share": 0.3},
            "encoder": {"path": str(encoder), "max_tokens": 128},
            "evaluate": {"fidelity_examples": 8},
            "report": {"title": "What teaches a small model to answer Python questions"},
        },
        source="demo",
    )


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=512)


def _show(settings: PipelineSettings, console: Console) -> None:
    """A few queries with the examples that influence them most, the quality, and where the report lies."""
    folder = Path(settings.output)
    attributions = pq.read_table(folder / "attributions")
    best = attributions.filter(pc.less_equal(attributions["rank"], _SHOWN_EXAMPLES))
    texts = {row["id"]: row for row in pq.read_table(folder / "corpus.parquet").to_pylist()}
    asked = demo_data()[1].to_pylist()
    queries = asked[: _SHOWN_QUERIES // 2] + asked[-_SHOWN_QUERIES // 2 :]
    table = Table("query", "most influential examples", "cosine", "above % of corpus")
    for query in queries:
        rows = [row for row in best.to_pylist() if row["query_id"] == query["id"]]
        for row in rows:
            table.add_row(
                query["prompt"] if row["rank"] == 1 else "",
                f"{row['example_id']}: {_cut(texts[row['example_id']]['response'])}",
                f"{row['score']:.3f}",
                f"{row['percentile']:.2f}",
                end_section=row is rows[-1],
            )
    console.print(table)
    console.print(_quality(folder))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


def _quality(folder: Path) -> Table:
    methods = json.loads((folder / "evaluation.json").read_bytes())["methods"]
    figures = list(methods["encoder"])
    table = Table("agreement with exact gradient influence (test split)", *figures)
    for name, values in methods.items():
        table.add_row(
            name.replace("_", " "), *(f"{values[f]['mean']:.3f} ± {values[f]['std']:.3f}" for f in figures)
        )
    return table


def _cut(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
