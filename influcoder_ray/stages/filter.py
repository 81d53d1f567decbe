"""Filter: the corpus without the examples that most influence unwanted answers, and a review of those."""

from collections.abc import Mapping

from influcoder_ray.attribution.selection import rows_of_share
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import embed
from influcoder_ray.stages.aims import find_aims
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.parts import corpus_parts, embedded_rows, step_units
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.select import changed, paths, refuse_added_columns
from influcoder_ray.stages.steps import Steps
from influcoder_ray.stages.work.scoring import ScoreTables, ScoreWork, Scoring
from influcoder_ray.stages.work.writing import WriteWork
from influcoder_ray.tables.datafiles import DataFile, find_data_files, require_columns
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState

FILTERED, REMOVED = "filtered", "removed"
REVIEW_PAGE, REVIEW_TABLE = "removed_review.html", "removed_review.parquet"
TABLES = ScoreTables.of("filter")
CHOSEN, REVIEW = "_state/filter/chosen", "_state/filter/review"
CARD, CARD_TEXT = f"{REMOVED}/_card.json", f"{REMOVED}/_README.md"


def state(root: Place) -> StageState:
    tables = (FILTERED, REMOVED, REVIEW_PAGE, REVIEW_TABLE, *TABLES.names, CHOSEN, REVIEW)
    return StageState(root, "filter", tables)


def why_left_out(settings: PipelineSettings) -> str:
    """Why there is nothing to do whatever the folder holds; empty where there may be."""
    return (
        ""
        if settings.filter.is_wanted
        else "filter does not say how much (fraction, count, above or labels), so nothing is to be taken out"
    )


def check(settings: PipelineSettings) -> None:
    """Refuse what cannot be filtered, as far as the stages before are finished.

    Raises:
        UserError: another corpus than the one that was embedded, queries or columns that are not there, more
            than there is.
    """
    label_files(settings)
    if not embed.state(settings.root).is_complete():
        return
    embed.plan(settings).refuse_other()
    spec = settings.filter
    refuse_added_columns(settings.corpus.files("corpus"))
    find_aims(settings, "filter", spec.queries, protected=spec.protected)
    rows = embedded_rows(settings)
    if spec.count is not None and spec.count >= rows:
        raise UserError(
            f"filter.count: takes out {spec.count:,} rows of the {rows:,} that have a score, so that none "
            "would be left; give fewer"
        )


def label_files(settings: PipelineSettings) -> list[DataFile]:
    """The files that hold the labels, if there are any.

    Raises:
        UserError: they are not there, or lack a column.
    """
    labels = settings.filter.labels
    if labels is None:
        return []
    if labels.path is None:
        files = settings.corpus.files("corpus")
        require_columns(files, [labels.column], setting="filter.labels.column")
        return files
    files = find_data_files(labels.path, setting="filter.labels.path")
    require_columns(files, [labels.id, labels.column], setting="filter.labels")
    return files


def plan(settings: PipelineSettings) -> StagePlan:
    spec = settings.filter
    labels = [[file.relative, file.identity] for file in label_files(settings)]
    fingerprint = Fingerprint(
        {
            "stage": "filter",
            "scheme": "filter-1",
            "inputs": {"embed": embed.state(settings.root).finished().digest},
            "labels": digest_of(labels),
            "filter": spec.model_dump(mode="json", exclude={"labels": {"path"}}),
        }
    )
    digest = fingerprint.digest
    record = state(settings.root)
    parts = corpus_parts(settings)
    rows = embedded_rows(settings)
    scored, written = step_units(parts, "scores", digest), step_units(parts, "filtered", digest)
    choice, card = (f"{name}-{digest[:16]}" for name in ("choice", "card"))

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.work.cards import removed_card
        from influcoder_ray.stages.work.choosing import choose_unwanted
        from influcoder_ray.stages.work.text_search import TEXTS

        check(settings)
        aims = find_aims(settings, "filter", spec.queries, protected=spec.protected)
        scoring = Scoring(
            aims,
            by=spec.by,
            weight=spec.weight,
            labels=spec.labels,
            column=TEXTS if spec.measure == "text" else "embedding",
        )
        steps = Steps(settings, record, fingerprint, display)
        steps.over_parts(scored, ScoreWork, settings=settings, scoring=scoring, tables=TABLES)
        made = steps.alone(
            choice,
            choose_unwanted,
            chosen=CHOSEN,
            review=REVIEW,
            aims=aims.names,
            wanted=_wanted(settings, rows),
            rows=rows,
            counts=paths(TABLES.counts, scored),
            scores=list(zip(parts, paths(TABLES.scores, scored), strict=True)),
            labelled=paths(TABLES.labelled, scored),
        )
        _refuse_nothing_or_all(settings, made, rows)
        display.say(
            f"  {made.counters['chosen']:,.0f} of {rows:,} rows taken out, "
            f"those with a score of at least {made.counters['threshold']:.4f}"
        )
        chosen = f"{CHOSEN}/{choice}.parquet"
        steps.over_parts(
            written,
            WriteWork,
            root=settings.root.uri,
            stage=record.stage,
            chosen=chosen,
            types=[file.path for file in record.files(TABLES.types)],
            aims=aims.names,
            taken=REMOVED,
            rest=FILTERED,
        )
        review = f"{REVIEW}/{choice}.parquet"
        steps.alone(card, removed_card, aims=aims, chosen=chosen, review=review, rows=rows, choice=choice)
        return steps.manifests

    unit_ids = (*(unit.unit_id for unit in (*scored, *written)), choice, card)
    return StagePlan(record, fingerprint, unit_ids, run, renewed_by=changed(record, fingerprint))


def _refuse_nothing_or_all(settings: PipelineSettings, choice: Manifest, rows: int) -> None:
    """Refuse a threshold that takes out nothing, or everything.

    Raises:
        UserError: naming the highest score, or the threshold.
    """
    counters = choice.counters
    if not counters["chosen"]:
        raise UserError(
            f"filter.above: no row has a score of at least {settings.filter.above}; "
            f"the highest is {counters['highest_score']:.4f}"
        )
    if counters["chosen"] >= rows:
        raise UserError(
            f"filter: the threshold {counters['threshold']:.4f} takes out all {rows:,} rows that have a "
            "score; give a higher one, or other labels"
        )


def _wanted(settings: PipelineSettings, rows: int) -> int | None:
    """The rows to take out; None where a threshold says."""
    spec = settings.filter
    if spec.fraction is not None:
        return rows_of_share(spec.fraction, rows)
    return spec.count
