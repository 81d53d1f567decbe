"""What exact re-ranking gains and costs, by the share of the pool that is re-ranked."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from influcoder_ray.report import figures
from influcoder_ray.report.blocks import Cell, Drawing, Row, Table
from influcoder_ray.report.contents import number
from influcoder_ray.report.contents import section as part
from influcoder_ray.report.wording import count, decimal, percent, spoken


def reranking(evaluation: Mapping[str, Any]) -> Table | None:
    """Recall and overlap by the share of the pool that is re-ranked, with its cost; None if not evaluated."""
    points = _points(evaluation, "encoder")
    if not points:
        return None
    untrained = {number(it.get("share")): it for it in _points(evaluation, "untrained_encoder")}
    names = _measures_at_k(points, "recall|own_recall|overlap")
    recalls = _measures_at_k(points, "recall")

    def cell(point: Mapping[str, Any], name: str) -> Cell:
        found = part(point, name)
        std = number(found.get("std"))
        return Cell(decimal(found.get("mean")), "" if std is None else decimal(std))

    rows = []
    for point in points:
        before = untrained.get(number(point.get("share")), {})
        evaluations = (
            f"{count(point.get('gradient_evaluations'))} ({percent(point.get('pool_share_evaluated'))})"
        )
        cells = (
            Cell(count(point.get("candidates"))),
            Cell(evaluations),
            *(cell(point, name) for name in names),
            *(cell(before, name) for name in recalls),
        )
        rows.append(Row(percent(point.get("share")), cells))
    columns = [_measure(name) for name in names]
    columns += [f"{_measure(name)}, before training" for name in recalls]
    return Table(
        label="What exact re-ranking gains and costs",
        corner="Share re-ranked",
        columns=("Candidates a query", "Gradients (of the pool)", *columns),
        rows=tuple(rows),
        caption="Exact re-ranking: the encoder's best of all queries, ordered for each query by exact "
        "influence. Gradients counts the different candidates of all test queries: each is computed once and "
        "serves every query. Own recall: were each query to rank its own candidates alone. Overlap: the mean "
        "share of the exact top that is found, over depths from one on, so that the first places count most.",
    )


def drawing(evaluation: Mapping[str, Any]) -> Drawing | None:
    """The gain and its price as a curve; None where it was not evaluated."""
    points = _points(evaluation, "encoder")
    names = _measures_at_k(points, "recall")
    if not names:
        return None
    name = "recall_at_10" if "recall_at_10" in names else names[0]

    def mean(point: Mapping[str, Any]) -> float | None:
        return number(part(point, name).get("mean"))

    drawn = [it for it in points if mean(it) is not None]
    if not drawn:
        return None
    shares = [float(it["share"]) for it in drawn]
    gains = []
    for method, legend in (("encoder", "trained"), ("untrained_encoder", "before training")):
        by_share = {number(it.get("share")): it for it in _points(evaluation, method)}
        found = [part(by_share.get(share, {}), name) for share in shares]
        gains.append(
            figures.Gain(
                legend,
                [_drawable(it.get("mean")) for it in found],
                [max(number(it.get("std")) or 0.0, 0.0) for it in found],
            )
        )
    costs = [_drawable(it.get("pool_share_evaluated")) for it in drawn]
    last = drawn[-1]
    meaning = (
        f"{_measure(name)} when the encoder's best examples of each query are ordered by exact influence, by "
        "the share of the pool that is so ordered. "
        f"From {decimal(mean(drawn[0]))} at {percent(drawn[0]['share'])} to "
        f"{decimal(mean(last))} at {percent(last['share'])}, which takes the gradients of "
        f"{percent(last.get('pool_share_evaluated'))} of the pool for all test queries together."
    )
    svg = figures.reranking_gain(shares, gains, costs, spoken(name), meaning)
    return Drawing("Exact re-ranking", meaning, Markup(svg), "") if svg else None


def _points(evaluation: Mapping[str, Any], method: str) -> list[Mapping[str, Any]]:
    """The points of a method's re-ranking curve whose share is known, by share."""
    found = part(evaluation, "reranking").get(method)
    points = [it for it in found if isinstance(it, Mapping)] if isinstance(found, list) else []
    known = [(share, it) for it in points if (share := number(it.get("share"))) is not None]
    return [it for _, it in sorted(known, key=lambda pair: pair[0])]


def _measures_at_k(points: Sequence[Mapping[str, Any]], kinds: str) -> list[str]:
    """The measures of these kinds (a pattern) that the first point holds."""
    return [name for name in (points[0] if points else {}) if re.fullmatch(rf"({kinds})_at_\d+", str(name))]


def _measure(name: object) -> str:
    return spoken(name).capitalize()


def _drawable(value: object) -> float:
    known = number(value)
    return math.nan if known is None else known
