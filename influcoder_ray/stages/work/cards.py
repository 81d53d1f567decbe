"""Cards: how a data set was chosen, for programs and for people, and the review of what was taken out."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray import __version__
from influcoder_ray.config import PipelineSettings
from influcoder_ray.report.review import Reviewed, render_review
from influcoder_ray.stages import filter as filtering
from influcoder_ray.stages import select
from influcoder_ray.stages.aims import Aims
from influcoder_ray.stages.texts import corpus_examples
from influcoder_ray.tables import schemas
from influcoder_ray.tables.state import Manifest, StageState, parquet_bytes

_FILES_IN_JSON, _FILES_IN_TEXT, _QUERIES_NAMED = 1000, 20, 100


def selected_card(
    settings: PipelineSettings,
    record: StageState,
    unit_id: str,
    threads: int,
    *,
    aims: Aims,
    chosen: str,
    rows: int,
    looked_at: int,
) -> Manifest:
    """Write the card of a selection.

    Args:
        chosen: path of the table of what was chosen.
        rows: of the corpus that have a score.
        looked_at: the candidates.
    """
    started = time.monotonic()
    spec = settings.select
    table = _read(record, chosen)
    counted = (
        f"column {spec.token_column!r} of the corpus"
        if spec.token_column
        else f"the tokenizer and template of {settings.model.path}, at most {settings.model.max_tokens} a row"
    )
    card = {
        **_common(record, table, aims, rows),
        "settings": spec.model_dump(mode="json"),
        "how": _how_selected(settings, aims),
        "candidates": looked_at,
        "tokens": sum(table["tokens"].to_pylist()),
        "tokens_counted_by": counted,
    }
    # Of the steps before there may be several looks, each deeper than the last; this is what came of them.
    counters = {"selected": card["rows"], "selected_tokens": card["tokens"]}
    text = _text("A selected training subset", card, select.SELECTED)
    files = {select.CARD: _json(card), select.CARD_TEXT: text.encode()}
    seconds = time.monotonic() - started
    return record.commit_files(unit_id, files, seconds=seconds, counters=counters)


def removed_card(
    settings: PipelineSettings,
    record: StageState,
    unit_id: str,
    threads: int,
    *,
    aims: Aims,
    chosen: str,
    review: str,
    rows: int,
    choice: str,
) -> Manifest:
    """Write the card of what was taken out, and the review of it as a page and as a table.

    Args:
        chosen, review: paths of the tables of what was chosen, and of the rows to look at.
        rows: of the corpus that have a score.
        choice: the unit that chose, whose counters have the threshold and what labels say of it.
    """
    started = time.monotonic()
    table, reviewed = _read(record, chosen), _read(record, review)
    counters = record.manifests()[choice].counters
    labels = {k.removeprefix("labels_"): v for k, v in counters.items() if k.startswith("labels_")}
    card = {
        **_common(record, table, aims, rows),
        "settings": settings.filter.model_dump(mode="json"),
        "how": _how_filtered(settings, aims),
        "threshold": counters["threshold"],
        "labelled_rows": labels or None,
    }
    examples = corpus_examples(settings, set(reviewed["source"].to_pylist()))
    for name in ("prompt", "response"):
        texts = [getattr(examples[source], name) for source in reviewed["source"].to_pylist()]
        place = schemas.REVIEW.get_field_index(name)
        reviewed = reviewed.set_column(place, schemas.REVIEW.field(name), pa.array(texts, pa.string()))
    page = render_review(
        [Reviewed(**row) for row in reviewed.to_pylist()],
        title=f"{settings.report.title}: what was taken out",
        facts=_facts(card),
        how=card["how"],
    )
    files = {
        filtering.REVIEW_TABLE: parquet_bytes(reviewed),
        filtering.REVIEW_PAGE: page.encode(),
        filtering.CARD: _json(card),
        filtering.CARD_TEXT: _text("What was taken out", card, filtering.REMOVED).encode(),
    }
    seconds = time.monotonic() - started
    return record.commit_files(unit_id, files, seconds=seconds, counters={})


def _read(record: StageState, path: str) -> pa.Table:
    with (record.root / path).open() as stream:
        return pq.ParquetFile(stream).read().replace_schema_metadata(None)


def _common(record: StageState, table: pa.Table, aims: Aims, rows: int) -> dict[str, Any]:
    held = record.fingerprint()
    assert held is not None
    scores = table["score"].to_numpy()
    files = Counter(source.rsplit(":", 1)[0] for source in table["source"].to_pylist())
    share = {name: count / table.num_rows for name, count in _by_count(files)[:_FILES_IN_JSON]}
    return {
        "influcoder_ray": __version__,
        "fingerprint": held.digest,
        "inputs": held.fields["inputs"],
        "rows": table.num_rows,
        "scored_rows": rows,
        "share_of_scored_rows": table.num_rows / rows,
        "lowest_score": float(scores.min()),
        "mean_score": float(scores.mean()),
        "highest_score": float(scores.max()),
        "queries": len(aims.ids),
        "named_queries": list(aims.names[:_QUERIES_NAMED]),
        "protected_queries": list(aims.protected[:_QUERIES_NAMED]),
        "files": len(files),
        "share_by_file": share,
    }


def _by_count(files: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(files.items(), key=lambda item: (-item[1], item[0]))


def _how_selected(settings: PipelineSettings, aims: Aims) -> list[str]:
    spec = settings.select
    many = f"{len(aims.ids):,} queries"
    if spec.group_by is not None:
        many += f" in {len(aims.names):,} groups by {spec.group_by!r}"
    score = {
        "mean": f"A row's score is its mean cosine with {many}.",
        "max": f"A row's score is its highest cosine with any of {many}.",
        "round_robin": f"{many} took their best remaining row in turn; a score is the cosine with the one "
        "that took the row.",
    }[spec.by]
    amount = {
        "fraction": lambda v: f"The best {100 * v:g}% of the rows with a score were taken.",
        "count": lambda v: f"The best {v:,} rows were taken.",
        "tokens": lambda v: f"Rows were taken in order until the next would have exceeded {v:,} tokens.",
        "above": lambda v: f"Every row with a score of at least {v} was taken.",
    }
    (taken,) = (say(getattr(spec, name)) for name, say in amount.items() if getattr(spec, name) is not None)
    alike = f", and of rows whose embeddings have a cosine of {spec.near} or more" if spec.near else ""
    copies = f"Of equal contents{alike}, at most {spec.copies:,} stand here."
    if not spec.copies:
        copies = "Equal contents were not limited."
    diverse = (
        f"The next row was always the one with the highest {1 - spec.diversity:g} x score - "
        f"{spec.diversity:g} x its highest cosine with what was taken already, among the candidates alone."
    )
    return [score, taken, copies, *([diverse] if spec.diversity else [])]


def _how_filtered(settings: PipelineSettings, aims: Aims) -> list[str]:
    spec = settings.filter
    one = "highest cosine with any" if spec.by == "max" else "mean cosine"
    score = f"A row's score is its {one} of {len(aims.ids):,} unwanted answers"
    if spec.by == "mean":
        score = f"A row's score is its mean cosine with {len(aims.ids):,} unwanted answers"
    if aims.protected:
        score += f" less {spec.weight:g} x the same of {len(aims.protected):,} protected ones"
    score += ", in what their texts are about" if spec.measure == "text" else ", in predicted gradients"
    if spec.fraction is not None:
        taken = f"The {100 * spec.fraction:g}% of the rows with the highest scores were taken out."
    elif spec.count is not None:
        taken = f"The {spec.count:,} rows with the highest scores were taken out."
    elif spec.above is not None:
        taken = f"Every row with a score of at least {spec.above} was taken out."
    elif spec.precision is not None:
        taken = f"The threshold has the highest recall on the labelled rows at precision {spec.precision:g}."
    else:
        taken = "The threshold has the highest F1 on the labelled rows."
    note = "Figures on labelled rows hold for the corpus as far as these were drawn from it at random."
    return [f"{score}.", taken, *([note] if spec.labels is not None else [])]


def _facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a card says in numbers, as words and figures."""
    facts = [
        ("Rows", f"{card['rows']:,} of {card['scored_rows']:,} ({card['share_of_scored_rows']:.2%})"),
        (
            "Scores",
            f"{card['lowest_score']:.4f} to {card['highest_score']:.4f}, mean {card['mean_score']:.4f}",
        ),
        ("Queries", f"{card['queries']:,}" + _protected(card)),
    ]
    if "tokens" in card:
        facts.append(("Tokens", f"{card['tokens']:,}, counted by {card['tokens_counted_by']}"))
        facts.append(("Candidates", f"{card['candidates']:,}"))
    if "threshold" in card:
        facts.append(("Threshold", f"{card['threshold']:.4f}"))
    labels = card.get("labelled_rows")
    if labels:
        facts.append(
            (
                "On labelled rows",
                f"precision {labels['precision']:.3f}, recall {labels['recall']:.3f}, F1 {labels['f1']:.3f}, "
                f"average precision {labels['average_precision']:.3f} ({labels['unwanted']:,.0f} unwanted of "
                f"{labels['labelled']:,.0f})",
            )
        )
    return facts


def _protected(card: Mapping[str, Any]) -> str:
    count = len(card["protected_queries"])
    return f", {count:,} protected" if count else ""


def _text(title: str, card: Mapping[str, Any], table: str) -> str:
    share: Mapping[str, float] = card["share_by_file"]
    lines = [
        f"# {title}",
        "",
        f"Chosen by influcoder-ray {card['influcoder_ray']}; fingerprint `{card['fingerprint']}`.",
        "The rows are the corpus's own, with all their columns, and three more: `influcoder_score`, "
        "`influcoder_rank` (1 for the first that was taken) and `influcoder_query` (the query, or group of "
        "them, that the row is nearest to).",
        "",
        *card["how"],
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(card)),
        "",
        f"| file ({card['files']:,} in all) | share of these rows |",
        "|---|---|",
        *(f"| `{name}` | {part:.2%} |" for name, part in list(share.items())[:_FILES_IN_TEXT]),
        "",
        "```python",
        f'pandas.read_parquet("{table}")        # or ray.data.read_parquet("{table}")',
        f'datasets.load_dataset("parquet", data_files="{table}/*.parquet")',
        "```",
        "",
        "Settings:",
        "",
        "```json",
        json.dumps(card["settings"], indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _json(card: Mapping[str, Any]) -> bytes:
    return json.dumps(card, indent=2).encode()
