"""Select: a training subset for the queries' task, with all columns of the corpus, out of the embeddings."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from influcoder_ray.attribution.diversity import MOST_COMPARED
from influcoder_ray.attribution.selection import rows_of_share
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import embed, sketch
from influcoder_ray.stages.aims import Aims, find_aims
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.parts import corpus_parts, embedded_rows, step_units
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.steps import Steps
from influcoder_ray.stages.work.scoring import ScoreTables, ScoreWork, Scoring
from influcoder_ray.stages.work.writing import ADDED, WriteWork
from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import DataFile, require_columns
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Unit

SELECTED = "selected"
TABLES = ScoreTables.of("select")
BARS, CANDIDATES, CHOSEN = (f"_state/select/{name}" for name in ("bars", "candidates", "chosen"))
_UNKNOWN = "ended_by_unknown_rows"
CARD, CARD_TEXT = f"{SELECTED}/_card.json", f"{SELECTED}/_README.md"


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
    files = settings.corpus.files("corpus")
    if spec.token_column is not None:
        require_columns(files, [spec.token_column], setting="select.token_column")
    refuse_added_columns(files)
    find_aims(settings, "select", spec.queries, group_by=spec.group_by)
    rows = embedded_rows(settings)
    if spec.count is not None and spec.count > rows:
        raise UserError(
            f"select.count: asks for {spec.count:,} rows; {rows:,} have a score, so give at most that"
        )
    if spec.above is None:
        _refuse_comparing(settings, _depth(settings, rows))


def refuse_added_columns(files: Sequence[DataFile]) -> None:
    """Refuse files of a corpus that have one of the columns that are added to what is chosen.

    Raises:
        UserError: naming the file and the column.
    """
    for file in files:
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
    scoring: str
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
            "window": settings.model.model_dump(mode="json", include={"max_tokens", "template"}),
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
                scoring,
                step_units(parts, scoring, digest),
                f"bar{depth}-{digest[:16]}",
                step_units(parts, f"candidates{depth}", digest),
                f"choice{depth}-{digest[:16]}",
            )
            if depth >= rows:
                return
            depth = min(2 * depth, rows)

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.work.cards import selected_card

        check(settings)
        aims = find_aims(settings, "select", spec.queries, group_by=spec.group_by)
        steps = Steps(settings, record, fingerprint, display)
        for look in passes():
            choice = _choose(settings, steps, look, aims, rows, digest)
            if _UNKNOWN not in choice.counters:
                break
        _refuse_too_few(settings, choice, rows)
        display.say(f"  {_chosen_line(choice, rows)}")
        chosen = f"{CHOSEN}/{look.choice}.parquet"
        steps.over_parts(
            written,
            WriteWork,
            root=settings.root.uri,
            stage=record.stage,
            chosen=chosen,
            types=_paths_of(TABLES.types, [steps.manifests[unit.unit_id] for unit in look.scored]),
            aims=aims.names,
            taken=SELECTED,
            rest=None,
        )
        looked_at = int(choice.counters["looked_at"])
        steps.alone(card, selected_card, aims=aims, chosen=chosen, rows=rows, looked_at=looked_at)
        return steps.manifests

    unit_ids: dict[str, None] = {}
    held = record.manifests()
    for look in passes():
        unit_ids.update(dict.fromkeys(look.unit_ids))
        if look.choice not in held or _UNKNOWN not in held[look.choice].counters:
            break
    unit_ids.update(dict.fromkeys([*(unit.unit_id for unit in written), card]))
    # A choice is made anew within seconds to minutes, whatever in it has changed.
    renewed_by = changed(record, fingerprint)
    return StagePlan(record, fingerprint, tuple(unit_ids), run, renewed_by=renewed_by)


def _choose(
    settings: PipelineSettings, steps: Steps, look: _Pass, aims: Aims, rows: int, digest: str
) -> Manifest:
    """Look at the best rows and choose among them."""
    from influcoder_ray.stages.work.candidates import CandidateWork
    from influcoder_ray.stages.work.choosing import choose_subset, raise_bars

    spec = settings.select
    in_turns = spec.by == "round_robin"
    each = rows if look.whole else math.ceil(look.depth / len(aims.names))
    scoring = Scoring(aims, by="mean" if spec.by == "mean" else "max", depth=each if in_turns else None)
    steps.over_parts(look.scored, ScoreWork, settings=settings, scoring=scoring, tables=TABLES)
    bar = steps.alone(
        look.bar,
        raise_bars,
        bars=BARS,
        depth=each if in_turns else look.depth,
        aims=len(aims.names),
        counts=paths(TABLES.counts, look.scored),
        scores=paths(TABLES.scores, look.scored),
    )
    found = steps.over_parts(
        look.candidates,
        CandidateWork,
        settings=settings,
        scores=TABLES.scores,
        scored_in=look.scoring,
        bars=f"{BARS}/{look.bar}.parquet",
        candidates=CANDIDATES,
        compared=_compares(settings),
        fingerprint=digest,
    )
    count = int(sum(manifest.counters.get("candidates", 0) for manifest in found))
    if not count:
        raise UserError(
            f"select.above: no row has a score of at least {spec.above}; "
            f"the highest is about {bar.counters['highest_score']:.4f}"
        )
    _refuse_comparing(settings, count)
    return steps.alone(
        look.choice,
        choose_subset,
        chosen=CHOSEN,
        wanted=_wanted(settings, rows),
        depth=look.depth,
        whole=look.whole,
        candidates=_paths_of(CANDIDATES, found),
    )


def changed(record: StageState, fingerprint: Fingerprint) -> tuple[str, ...]:
    """The dotted names of all in which a folder's last choice differs: it is made anew."""
    held = record.fingerprint()
    return () if held is None else tuple(fingerprint.differing(held))


def paths(table: str, units: list[Unit]) -> list[str]:
    """Where steps over the parts wrote a table."""
    return [f"{table}/{unit.unit_id}.parquet" for unit in units]


def _paths_of(table: str, manifests: Sequence[Manifest]) -> list[str]:
    """Where steps wrote a table, for those that had rows for it."""
    return [file.path for manifest in manifests for file in manifest.files if file.table == table]


def _compares(settings: PipelineSettings) -> bool:
    return settings.select.near is not None or settings.select.diversity > 0


def _wanted(settings: PipelineSettings, rows: int) -> int | None:
    """The rows to select; None where the amount is in tokens or a score."""
    spec = settings.select
    if spec.fraction is not None:
        return rows_of_share(spec.fraction, rows)
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
        f"{choice.counters['taken']:,.0f} rows with {choice.counters['taken_tokens']:,.0f} tokens are there"
    )
    copies = f" once copies are limited to {spec.copies}" if spec.copies else ""
    raise UserError(f"select.{name}: asks for {asked}; {there}{copies}; ask for less, or allow more copies")


def _chosen_line(choice: Manifest, rows: int) -> str:
    return (
        f"{choice.counters['taken']:,.0f} of {rows:,} rows selected, "
        f"{choice.counters['taken_tokens']:,.0f} tokens"
    )
