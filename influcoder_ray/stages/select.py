"""Select: a training subset for the queries' task, with all columns of the corpus, out of the embeddings."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from influcoder_ray.attribution.diversity import MOST_COMPARED
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import embed, sketch
from influcoder_ray.stages.aims import Aims, find_aims
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.parts import corpus_parts, embedded_rows, step_units
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.work.scoring import ScoreTables, ScoreWork, Scoring
from influcoder_ray.stages.work.writing import ADDED
from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import find_data_files, require_columns
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Unit

SELECTED = "selected"
TABLES = ScoreTables.of("select")
BARS, CANDIDATES, CHOSEN = (f"_state/select/{name}" for name in ("bars", "candidates", "chosen"))
CARD, CARD_TEXT = f"{SELECTED}/_card.json", f"{SELECTED}/_README.md"
# Every setting may change in a folder: a selection is made anew within seconds to minutes.
_INPUTS = ("inputs.embed", "inputs.sketch", "scheme")


def state(root: Place) -> StageState:
    return StageState(root, "select", (SELECTED, *TABLES.names, BARS, CANDIDATES, CHOSEN))


def why_left_out(settings: PipelineSettings) -> str:
    """Why there is nothing to do whatever the folder holds; empty where there may be."""
    return (
        ""
        if settings.select.is_wanted
        else "select names no amount (fraction, count, tokens or above), so nothing is to be selected"
    )


def check(settings: PipelineSettings) -> None:
    """Refuse what cannot be selected, as far as the stages before are finished.

    Raises:
        UserError: another corpus than the one that was embedded, queries or columns that are not there, more
            than there is.
    """
    if not embed.state(settings.root).is_complete():
        return
    embed.plan(settings).refuse_other()
    spec = settings.select
    files = find_data_files(settings.corpus.path, setting="corpus.path")
    if spec.token_column is not None:
        require_columns(files, [spec.token_column], setting="select.token_column")
    refuse_added_columns(settings)
    find_aims(settings, "select", spec.queries, group_by=spec.group_by)
    rows = embedded_rows(settings)
    if spec.count is not None and spec.count > rows:
        raise UserError(
            f"select.count: asks for {spec.count:,} rows; {rows:,} have a score, so give at most that"
        )
    if spec.above is None:
        _refuse_comparing(settings, _depth(settings, rows))


def refuse_added_columns(settings: PipelineSettings) -> None:
    """Refuse a corpus that has one of the columns that are added to what is chosen.

    Raises:
        UserError: naming the file and the column.
    """
    for file in find_data_files(settings.corpus.path, setting="corpus.path"):
        for name in ADDED:
            if name in file.columns:
                raise UserError(
                    f"corpus.path: {file.place} has a column {name!r}, which is to be added; rename it"
                )


@dataclass(frozen=True)
class _Pass:
    """One look at the best rows: how far down, and the units of its steps."""

    depth: int
    whole: bool
    scored: list[Unit]
    bar: str
    candidates: list[Unit]
    choice: str

    @property
    def unit_ids(self) -> list[str]:
        return [*(u.unit_id for u in (*self.scored, *self.candidates)), self.bar, self.choice]


def plan(settings: PipelineSettings) -> StagePlan:
    spec = settings.select
    fingerprint = Fingerprint(
        {
            "stage": "select",
            "scheme": "select-1",
            "inputs": {
                "embed": embed.state(settings.root).finished().digest,
                "sketch": sketch.state(settings.root).finished().digest,
            },
            "select": spec.model_dump(mode="json"),
        }
    )
    digest = fingerprint.digest
    record = state(settings.root)
    parts = corpus_parts(settings)
    rows = embedded_rows(settings)
    written = step_units(parts, "selected", digest)
    card = f"card-{digest[:16]}"

    def passes() -> Iterator[_Pass]:
        """Each look goes twice as deep as the one before; the last one sees every row."""
        depth = _depth(settings, rows)
        while True:
            # A common score is the same however deep one looks.
            scoring = f"scores{depth}" if spec.by == "round_robin" else "scores"
            yield _Pass(
                depth,
                depth >= rows,
                step_units(parts, scoring, digest),
                f"bar{depth}-{digest[:16]}",
                step_units(parts, f"candidates{depth}", digest),
                f"choice{depth}-{digest[:16]}",
            )
            if depth >= rows:
                return
            depth = min(2 * depth, rows)

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, one_unit, run_units
        from influcoder_ray.stages.work.candidates import CandidateWork
        from influcoder_ray.stages.work.cards import selected_card
        from influcoder_ray.stages.work.choosing import choose_subset, raise_bars
        from influcoder_ray.stages.work.writing import WriteWork

        check(settings)
        record.renew(fingerprint)
        reservation = reserve(settings.workers.attribute)
        aims = find_aims(settings, "select", spec.queries, group_by=spec.group_by)
        found: dict[str, Manifest] = {}

        def over_parts(units: list[Unit], work: Any, arguments: Mapping[str, Any]) -> None:
            found.update(
                run_units(WorkPlan(record, units, work, arguments), fingerprint, reservation, display)
            )

        def alone(unit_id: str, work: Any, **arguments: Any) -> Manifest:
            found[unit_id] = one_unit(record, unit_id, work, settings, reservation, **arguments)
            return found[unit_id]

        for look in passes():
            scoring = Scoring(
                aims,
                by="max" if spec.by == "round_robin" else spec.by,
                depth=_each_depth(look.depth, aims, rows) if spec.by == "round_robin" else None,
            )
            over_parts(look.scored, ScoreWork, {"settings": settings, "scoring": scoring, "tables": TABLES})
            bar = alone(
                look.bar,
                raise_bars,
                bars=BARS,
                depth=scoring.depth or look.depth,
                aims=len(aims.names),
                counts=paths(TABLES.counts, look.scored),
                scores=paths(TABLES.scores, look.scored),
            )
            over_parts(
                look.candidates,
                CandidateWork,
                {
                    "settings": settings,
                    "scores": TABLES.scores,
                    "scored_in": look.scored[0].unit_id.split("-")[1],
                    "bars": f"{BARS}/{look.bar}.parquet",
                    "candidates": CANDIDATES,
                    "compared": _compares(settings),
                    "fingerprint": digest,
                },
            )
            held = [found[unit.unit_id] for unit in look.candidates]
            count = int(sum(m.counters.get("candidates", 0) for m in held))
            if not count:
                raise UserError(
                    f"select.above: no row has a score of at least {spec.above}; "
                    f"the highest is about {bar.counters['highest_score']:.4f}"
                )
            _refuse_comparing(settings, count)
            choice = alone(
                look.choice,
                choose_subset,
                chosen=CHOSEN,
                wanted=_wanted(settings, rows),
                depth=look.depth,
                whole=look.whole,
                candidates=[file.path for m in held for file in m.files],
            )
            if "ended_by_unknown_rows" not in choice.counters:
                break
        _refuse_too_few(settings, choice, rows)
        display.say(f"  {_chosen_line(choice, rows)}")
        chosen = f"{CHOSEN}/{look.choice}.parquet"
        over_parts(
            written,
            WriteWork,
            {
                "root": settings.root.uri,
                "stage": record.stage,
                "chosen": chosen,
                "types": [file.path for file in record.files(TABLES.types) if _is_of(file.path, look.scored)],
                "aims": aims.names,
                "taken": SELECTED,
                "rest": None,
            },
        )
        alone(
            card,
            selected_card,
            aims=aims,
            chosen=chosen,
            rows=rows,
            looked_at=int(choice.counters["looked_at"]),
        )
        return found

    unit_ids: dict[str, None] = {}
    held = record.manifests()
    for look in passes():
        unit_ids.update(dict.fromkeys(look.unit_ids))
        if look.choice not in held or "ended_by_unknown_rows" not in held[look.choice].counters:
            break
    unit_ids.update(dict.fromkeys([*(unit.unit_id for unit in written), card]))
    renewed_by = (*_INPUTS, *changed(record, fingerprint))
    return StagePlan(record, fingerprint, tuple(unit_ids), run, renewed_by=renewed_by)


def changed(record: StageState, fingerprint: Fingerprint) -> list[str]:
    """The dotted names of the settings in which a folder's last choice differs: it is made anew."""
    held = record.fingerprint()
    if held is None:
        return []
    return [line.split(" is ", 1)[0] for line in fingerprint.differences(held)]


def paths(table: str, units: list[Unit]) -> list[str]:
    """Where steps over the parts wrote a table."""
    return [f"{table}/{unit.unit_id}.parquet" for unit in units]


def _is_of(path: str, units: list[Unit]) -> bool:
    return path.rsplit("/", 1)[1].removesuffix(".parquet") in {unit.unit_id for unit in units}


def _compares(settings: PipelineSettings) -> bool:
    return settings.select.near is not None or settings.select.diversity > 0


def _wanted(settings: PipelineSettings, rows: int) -> int | None:
    """The rows to select; None where the amount is in tokens or a score."""
    spec = settings.select
    if spec.fraction is not None:
        return max(1, math.floor(spec.fraction * rows))
    return spec.count


def _depth(settings: PipelineSettings, rows: int) -> int:
    """How many of the best rows are looked at first."""
    spec = settings.select
    if spec.above is not None:
        return rows
    wanted = _wanted(settings, rows)
    if wanted is None:
        # The sample's tokens are counted already; the corpus's rows are taken to be as long.
        schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
        tokens = sketch.state(settings.root).read(sketch.POOL, schema, ["tokens"])["tokens"]
        wanted = math.ceil((spec.tokens or 0) / max(1.0, pc.mean(tokens).as_py() or 1.0))
    return min(rows, math.ceil(spec.candidates * wanted))


def _each_depth(depth: int, aims: Aims, rows: int) -> int:
    """How many of its best rows each aim holds ready, where they take turns."""
    return rows if depth >= rows else math.ceil(depth / len(aims.names))


def _refuse_comparing(settings: PipelineSettings, candidates: int) -> None:
    if _compares(settings) and candidates > MOST_COMPARED:
        raise UserError(
            f"select: {candidates:,} candidates are too many to be compared with each other for near or "
            f"diversity (at most {MOST_COMPARED:,}); ask for fewer rows, lower select.candidates, or leave "
            "both out"
        )


def _refuse_too_few(settings: PipelineSettings, choice: Manifest, rows: int) -> None:
    """Refuse an amount that all rows together do not come to.

    Raises:
        UserError: naming what there is.
    """
    spec = settings.select
    if spec.above is not None or "ended_by_rows" not in choice.counters:
        return
    name = next(n for n in ("fraction", "count", "tokens") if getattr(spec, n) is not None)
    wanted = _wanted(settings, rows)
    asked = f"{wanted:,} rows" if wanted is not None else f"{spec.tokens:,} tokens"
    there = (
        f"{choice.counters['chosen']:,.0f} rows with {choice.counters['chosen_tokens']:,.0f} tokens are there"
    )
    copies = f" once copies are limited to {spec.copies}" if spec.copies else ""
    raise UserError(f"select.{name}: asks for {asked}; {there}{copies}; ask for less, or allow more copies")


def _chosen_line(choice: Manifest, rows: int) -> str:
    return (
        f"{choice.counters['chosen']:,.0f} of {rows:,} rows selected, "
        f"{choice.counters['chosen_tokens']:,.0f} tokens"
    )
