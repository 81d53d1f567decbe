"""Choosing: the rows that are selected or filtered out, from scores and counts of the whole corpus.

It holds the rows above a bar (about 100 bytes each, and their vectors where they are compared), never
the corpus.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.attribution.distribution import percentile_of_rank
from influcoder_ray.attribution.diversity import by_marginal_relevance, near_clusters, rounded_directions
from influcoder_ray.attribution.selection import (
    BINS,
    Budget,
    Copies,
    bar_of,
    best_first,
    lowest_in_bin,
    score_bins,
    take_in_order,
    take_in_turns,
)
from influcoder_ray.attribution.specs import FilterSpec
from influcoder_ray.attribution.threshold import at_threshold, with_best_f1, with_precision
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import Unit

# Small row groups, so that a part's own rows are found without reading the others.
_ROWS_PER_GROUP = 4096


def count_scores(root: Place, paths: Iterable[str]) -> np.ndarray:
    """The rows (BINS,) in each bin of scores, over all parts."""
    counts = np.zeros(BINS, dtype=np.int64)
    for table in _each(root, paths):
        counts[table["bin"].to_numpy()] += table["count"].to_numpy()
    return counts


def raise_bars(
    settings: PipelineSettings,
    record: StageState,
    unit_id: str,
    threads: int,
    *,
    bars: str,
    depth: int,
    aims: int,
    counts: Sequence[str],
    scores: Sequence[str],
) -> Manifest:
    """Write the score from which on a row is a candidate: one for all, or one for each aim's ranking.

    Args:
        depth: candidates that are wanted at least, of each ranking.
        counts, scores: paths of the tables of counts and, of a round robin, of scores.
    """
    spec = settings.select
    counters = {}
    if spec.by == "round_robin":
        found = _bars_of_each(record.root, scores, depth, aims)
    else:
        bins = count_scores(record.root, counts)
        counters["highest_score"] = lowest_in_bin(int(np.flatnonzero(bins)[-1]))
        found = np.array([bar_of(bins, depth) if spec.above is None else spec.above], dtype=np.float32)
    table = pa.table({"score": found}, schema=schemas.BARS)
    return record.commit(unit_id, Output({bars: table}, rows_in=0, rows_out=0, counters=counters), 0.0)


def choose_subset(
    settings: PipelineSettings,
    record: StageState,
    unit_id: str,
    threads: int,
    *,
    chosen: str,
    wanted: int | None,
    depth: int,
    whole: bool,
    candidates: Sequence[str],
) -> Manifest:
    """Write which candidates are selected, in which order.

    Args:
        wanted: rows; None where the amount is in tokens or a score.
        depth: candidates that diversity chooses among.
        whole: whether every row that could be taken is a candidate.
        candidates: paths of the tables of candidates.
    """
    spec = settings.select
    pairs = best_first(pa.concat_tables(_each(record.root, candidates)))
    rows = _different(pairs)
    tokens = rows["tokens"].to_pylist()
    budget = Budget(rows=wanted, tokens=spec.tokens, tokens_of=tokens)
    kinds: list[Sequence[object]] = [rows["content_hash"].to_pylist()]
    directions = np.zeros((0, 1))
    if spec.near is not None or spec.diversity:
        directions = rounded_directions(vector_matrix(rows))
    if spec.near is not None:
        kinds.append(near_clusters(directions, spec.near).tolist())
    copies = Copies(spec.copies, kinds)
    if spec.by == "round_robin":
        rankings = _rankings(pairs, rows)
        taken = take_in_turns(rankings, budget, copies.admit, copies.take, whole=whole)
    elif spec.diversity:
        best = range(min(depth, rows.num_rows))
        allowed = take_in_turns([best], Budget(), copies.admit, copies.take, whole=True).rows
        order = by_marginal_relevance(rows["score"].to_numpy()[allowed], directions[allowed], spec.diversity)
        taken = take_in_order((allowed[place] for place in order), budget, whole=whole)
    else:
        taken = take_in_turns([range(rows.num_rows)], budget, copies.admit, copies.take, whole=whole)
    selected = rows.take(pa.array(taken.rows, pa.int64()))
    if spec.by == "round_robin":
        selected = _scored_by(selected, pairs, taken.rankings)
    table = _ranked(selected)
    counters = {
        "looked_at": rows.num_rows,
        "taken": table.num_rows,
        "taken_tokens": sum(tokens[row] for row in taken.rows),
        f"ended_by_{taken.ended_by.replace(' ', '_')}": 1,
    }
    output = Output({chosen: table}, 0, 0, counters=counters, rows_per_group=_ROWS_PER_GROUP)
    return record.commit(unit_id, output, 0.0)


def choose_unwanted(
    settings: PipelineSettings,
    record: StageState,
    unit_id: str,
    threads: int,
    *,
    chosen: str,
    review: str,
    aims: Sequence[str],
    wanted: int | None,
    rows: int,
    counts: Sequence[str],
    scores: Sequence[tuple[Unit, str]],
    labelled: Sequence[str],
) -> Manifest:
    """Write which rows are taken out, and those that a person should look at.

    Args:
        wanted: rows to take out; None where a threshold says.
        rows: of the corpus that have a score.
        counts, labelled: paths of these tables.
        scores: each part with the path of its scores.
    """
    spec = settings.filter
    bins = count_scores(record.root, counts)
    marks = _labels(record.root, labelled) if spec.labels is not None else None
    threshold = _threshold(spec, marks) if wanted is None else None
    third = max(1, spec.review_rows // 3)
    if threshold is not None:
        place = int(score_bins(np.array([threshold], np.float32))[0])
        bar = min(bar_of(bins, int(bins[place:].sum()) + third), threshold)
    else:
        bar = bar_of(bins, (wanted or 0) + third)
    best = best_first(pa.concat_tables(_above(record.root, scores, bar)))
    taken = wanted if threshold is None else int((best["score"].to_numpy() >= np.float32(threshold)).sum())
    taken = taken or 0
    removed, kept = best[:taken], best[taken : taken + third]
    lowest = float(removed["score"][-1].as_py()) if taken else float(np.inf)
    counters: dict[str, float] = {"chosen": taken, "highest_score": float(best["score"][0].as_py())}
    if taken:
        counters["threshold"] = lowest if threshold is None else threshold
    if marks is not None:
        counters |= {
            f"labels_{k}": v for k, v in _validated(marks, counters.get("threshold", np.inf)).items()
        }
    top = min(third, taken)
    just = range(max(top, taken - third), taken)
    places = ["highest"] * top + ["just taken out"] * len(just) + ["just kept"] * kept.num_rows
    order = [*range(top), *just, *range(taken, taken + kept.num_rows)]
    looked_at = best.take(pa.array(order, pa.int64()))
    reviewed = pa.table(
        {
            "place": places,
            "example_id": looked_at["example_id"],
            "score": looked_at["score"],
            "percentile": np.array([percentile_of_rank(o + 1, rows) for o in order], dtype=np.float32),
            "removed": [o < taken for o in order],
            "query_id": [aims[a] for a in looked_at["aim"].to_pylist()],
            "source": looked_at["source"],
            "prompt": [""] * len(order),
            "response": [""] * len(order),
        },
        schema=schemas.REVIEW,
    )
    tables = {chosen: _ranked(removed), review: reviewed}
    output = Output(tables, 0, 0, counters=counters, rows_per_group=_ROWS_PER_GROUP)
    return record.commit(unit_id, output, 0.0)


def _each(root: Place, paths: Iterable[str]) -> Iterator[pa.Table]:
    for path in paths:
        with (root / path).open() as stream:
            yield pq.ParquetFile(stream).read().replace_schema_metadata(None)


def _bars_of_each(root: Place, paths: Iterable[str], depth: int, aims: int) -> np.ndarray:
    """The score (G,) of each aim's last wanted row; lower than any where it has fewer."""
    held = np.empty(0, np.int32), np.empty(0, np.float32)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for table in _each(root, paths):
        waiting.append((table["aim"].to_numpy(), table["score"].to_numpy()))
        # Sorting costs all that is held, so it waits until as much has come.
        if sum(len(of_aim) for of_aim, _ in waiting) >= aims * depth:
            held, waiting = _best_of_each([held, *waiting], depth, aims), []
    of_aim, scores = _best_of_each([held, *waiting], depth, aims)
    ends = np.cumsum(np.bincount(of_aim, minlength=aims))
    full = np.diff(ends, prepend=0) == depth
    return np.where(full, scores[np.maximum(ends - 1, 0)], -np.inf).astype(np.float32)


def _best_of_each(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], depth: int, aims: int
) -> tuple[np.ndarray, np.ndarray]:
    """The highest `depth` scores of each aim, aim by aim, best first: aims (M,), scores (M,)."""
    of_aim, scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((-scores, of_aim))
    of_aim, scores = of_aim[order], scores[order]
    firsts = np.searchsorted(of_aim, np.arange(aims))
    kept = np.arange(len(of_aim)) - firsts[of_aim] < depth
    return of_aim[kept], scores[kept]


def _different(pairs: pa.Table) -> pa.Table:
    """Each row once, by its best score."""
    _, first = np.unique(_keys(pairs), return_index=True)
    return pairs.take(pa.array(np.sort(first)))


def _keys(pairs: pa.Table) -> np.ndarray:
    """A number for each row of the corpus: its part's, and its own within that."""
    parts = pairs["part"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return (parts << 40) + pairs["row"].to_numpy()


def _rankings(pairs: pa.Table, rows: pa.Table) -> list[Sequence[int]]:
    """The rows of each aim that has any, best first."""
    places = {key: place for place, key in enumerate(_names(rows))}
    rankings: dict[int, list[int]] = {}
    for aim, key in zip(pairs["aim"].to_pylist(), _names(pairs), strict=True):
        rankings.setdefault(aim, []).append(places[key])
    return [rankings[aim] for aim in sorted(rankings)]


def _names(pairs: pa.Table) -> list[tuple[str, int]]:
    return list(zip(pairs["part"].to_pylist(), pairs["row"].to_pylist(), strict=True))


def _scored_by(selected: pa.Table, pairs: pa.Table, rankings: Sequence[int]) -> pa.Table:
    """Selected rows with the aim that took each, and the score for that one."""
    aims = sorted(set(pairs["aim"].to_pylist()))
    found = {
        (*key, aim): score
        for key, aim, score in zip(
            _names(pairs), pairs["aim"].to_pylist(), pairs["score"].to_pylist(), strict=True
        )
    }
    by = [aims[ranking] for ranking in rankings]
    scores = [found[(*key, aim)] for key, aim in zip(_names(selected), by, strict=True)]
    for name, values in (("score", scores), ("aim", by)):
        field = selected.schema.field(name)
        selected = selected.set_column(
            selected.schema.get_field_index(name), field, pa.array(values, field.type)
        )
    return selected


def _ranked(rows: pa.Table) -> pa.Table:
    """What was chosen, in order of rank, as a table in which each part's rows lie together."""
    if "tokens" not in rows.schema.names:
        rows = rows.append_column("tokens", pa.nulls(rows.num_rows, pa.int32()))
    rows = rows.append_column("rank", pa.array(np.arange(1, rows.num_rows + 1)))
    table = rows.select(schemas.CHOSEN.names).cast(schemas.CHOSEN)
    return table.sort_by([("part", "ascending"), ("row", "ascending")])


def _above(root: Place, scores: Sequence[tuple[Unit, str]], bar: float) -> Iterator[pa.Table]:
    """The rows of all parts with at least a score, with their part and source."""
    for part, path in scores:
        with (root / path).open() as stream:
            found = pq.ParquetFile(stream).read().replace_schema_metadata(None)
        found = found.filter(pa.array(found["score"].to_numpy() >= np.float32(bar)))
        names = part.sources(found["row"].to_pylist())
        found = found.append_column("part", pa.array([part.unit_id] * found.num_rows, pa.string()))
        yield found.append_column("source", pa.array(names, pa.string()))


def _labels(root: Place, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    table = pa.concat_tables(_each(root, paths))
    return table["score"].to_numpy(), table["unwanted"].to_numpy(zero_copy_only=False)


def _threshold(spec: FilterSpec, marks: tuple[np.ndarray, np.ndarray] | None) -> float:
    if spec.above is not None:
        return float(np.float32(spec.above))
    assert marks is not None
    try:
        chosen = with_best_f1(*marks) if spec.precision is None else with_precision(*marks, spec.precision)
    except ValueError as error:
        setting = "labels" if spec.precision is None else "precision"
        raise UserError(
            f"filter.{setting}: {error}; give other labels, or an amount in their place"
        ) from error
    return chosen.threshold


def _validated(marks: tuple[np.ndarray, np.ndarray], threshold: float) -> dict[str, float]:
    try:
        found = at_threshold(*marks, threshold)
    except ValueError as error:
        raise UserError(f"filter.labels: {error}; give other labels, or none") from error
    return {name: value for name, value in found.to_dict().items() if name != "threshold"}
