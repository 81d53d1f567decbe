"""The report's figures as SVG text that takes its colours and its type from the page around it.

Matplotlib draws with stand-in colours, which become `currentColor` and the page's CSS variables (with
a fallback that reads on light and dark), so that one drawing serves both colour schemes.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from influcoder_ray.report.contents import EpochRow

INK, MUTED, RULE, FIRST, SECOND, PAPER = (f"#0{n}0{n}0{n}" for n in range(1, 7))
_PAGE_COLOURS = {
    INK: "currentColor",
    MUTED: "var(--muted, #7a8288)",
    RULE: "var(--rule, #9aa0a6)",
    FIRST: "var(--first, #2a8a86)",
    SECOND: "var(--second, #c8702a)",
    PAPER: "var(--paper, transparent)",
}

# 331 points wide: at a telephone's width the type keeps its size, on a desk it grows by half.
_WIDTH = 4.6
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "influcoder-ray",
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.unicode_minus": True,
    "figure.constrained_layout.use": True,
}

_HEXAGONS = 34
_SHADES = 8
LEAST_PAIRS_FOR_TREND = 60
_MOST_BARS = 96
_MOST_LEVEL_LABELS = 6


@dataclass(frozen=True)
class PairsFigure:
    """Predicted against exact influence: the drawing, how many pairs lie beyond its frame, and whether
    a trend line is drawn."""

    svg: str
    outside: int
    has_trend: bool


def training_curve(epochs: Sequence[EpochRow], label: str) -> str | None:
    """Validation agreement (both kinds) and training loss by epoch; None without epochs.

    `label` describes the figure to those who cannot see it.
    """
    if not epochs:
        return None
    rows = sorted(epochs, key=lambda row: row.epoch)
    numbers = [row.epoch for row in rows]
    losses = [(row.epoch, row.loss) for row in rows if row.loss is not None and math.isfinite(row.loss)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.7 if losses else 2.7))
        if losses:
            above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 1])
        else:
            above = below = figure.subplots()
        per_query = [row.validation_per_query_rho for row in rows]
        aggregated = [row.validation_aggregated_rho for row in rows]
        above.plot(numbers, aggregated, "--s", color=SECOND, markersize=4, linewidth=1.6, label="aggregated")
        above.plot(numbers, per_query, "-o", color=FIRST, markersize=4.5, linewidth=2, label="per query")
        above.set_ylabel("rank agreement")
        above.margins(y=0.12)
        above.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3,
            borderaxespad=0.2,
            handlelength=2.4,
            borderpad=0.1,
        )
        chosen = next((row.epoch for row in rows if row.chosen), None)
        for axes in dict.fromkeys((above, below)):
            if chosen is not None:
                axes.axvline(chosen, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=0.5)
        if chosen is not None:
            right = chosen > (numbers[0] + numbers[-1]) / 2
            above.annotate(
                "chosen",
                (chosen, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if right else 4, 2),
                textcoords="offset points",
                ha="right" if right else "left",
                color=INK,
            )
        if losses:
            below.plot(*zip(*losses, strict=True), "-o", color=MUTED, markersize=3, linewidth=1.4)
            below.set_ylabel("loss")
            below.yaxis.set_major_locator(MaxNLocator(3))
            below.margins(y=0.18)
        below.set_xlabel("epoch (0: before training)")
        below.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
        if len(set(numbers)) == 1:
            below.set_xlim(numbers[0] - 0.5, numbers[0] + 0.5)
        figure.align_ylabels()
        return _as_page_svg(figure, "training", "Rank agreement and loss by epoch", label)


def predicted_against_exact(
    predicted: npt.NDArray[np.floating], exact: npt.NDArray[np.floating], label: str
) -> PairsFigure | None:
    """All pairs of (Q, P) predicted and exact cosines, as shaded hexagons with the median trend.

    None where no pair is finite. The frame holds the middle 99% of each axis, since a few extreme
    gradients would flatten the rest.
    """
    finite = np.isfinite(predicted) & np.isfinite(exact)
    across = np.asarray(predicted[finite], dtype=np.float64)
    up = np.asarray(exact[finite], dtype=np.float64)
    if not across.size:
        return None
    (left, right), (low, high) = _frame(across), _frame(up)
    inside = (across >= left) & (across <= right) & (up >= low) & (up <= high)
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(_WIDTH, 3.7))
        axes = figure.subplots()
        cells = axes.hexbin(
            across[inside],
            up[inside],
            gridsize=_HEXAGONS,
            extent=(left, right, low, high),
            mincnt=1,
            linewidths=0,
            edgecolors="none",
        )
        counts = np.asarray(cells.get_array(), dtype=np.float64)
        depth = np.log1p(counts) / np.log1p(counts.max())
        cells.set_array(None)
        cells.set_facecolor([(*_rgb(FIRST), 0.12 + 0.88 * math.ceil(d * _SHADES) / _SHADES) for d in depth])
        has_trend = across.size >= LEAST_PAIRS_FOR_TREND
        if has_trend:
            _draw_trend(axes, across, up)
        axes.set_xlim(left, right)
        axes.set_ylim(low, high)
        axes.set_xlabel("predicted: cosine of the encoder's vectors")
        axes.set_ylabel("exact: cosine of the gradients")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return PairsFigure(
            _as_page_svg(figure, "pairs", "Predicted against exact influence", label),
            int((~inside).sum()),
            has_trend,
        )


def score_distribution(
    counts: npt.NDArray[np.integer], edges: npt.NDArray[np.floating], best: Sequence[float], label: str
) -> str | None:
    """The share of all query x corpus scores in each bin; None where nothing was counted.

    `counts` is (B,), `edges` (B + 1,). `best` holds each query's highest score: their median is marked.
    """
    counts = np.asarray(counts, dtype=np.float64)
    held = np.flatnonzero(counts)
    if not held.size:
        return None
    first, last = held[0], held[-1] + 1
    step = math.ceil((last - first) / _MOST_BARS)
    starts = np.arange(first, last, step)
    heights = np.add.reduceat(counts[:last], starts) / counts.sum()
    borders = np.append(np.asarray(edges, dtype=np.float64)[starts], edges[last])
    # The last bar may join fewer bins than the others: drawn as a density, it must not look shorter.
    heights = heights * np.median(np.diff(borders)) / np.diff(borders)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.9))
        axes = figure.subplots()
        axes.stairs(heights, borders, fill=True, color=FIRST, alpha=0.3, linewidth=0)
        axes.stairs(heights, borders, color=FIRST, linewidth=1.5)
        axes.set_ylim(0, heights.max() * 1.16)
        finite = [score for score in best if math.isfinite(score)]
        if finite:
            mark = float(np.median(finite))
            axes.axvline(mark, color=SECOND, linewidth=1.6, linestyle=(0, (4, 2)))
            borders = np.append(borders, mark)
            on_left = mark > (borders.min() + borders.max()) / 2
            axes.annotate(
                "median query's\nbest example",
                (mark, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if on_left else 5, -2),
                textcoords="offset points",
                ha="right" if on_left else "left",
                va="top",
                color=INK,
            )
        pad = 0.03 * (borders.max() - borders.min())
        axes.set_xlim(borders.min() - pad, borders.max() + pad)
        axes.set_xlabel("score (cosine)")
        axes.set_ylabel("share of all scores")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(7))
        return _as_page_svg(figure, "scores", "Scores over the corpus", label)


@dataclass(frozen=True)
class Gain:
    """One method's recall at each share of the pool that is re-ranked, all (S,)."""

    name: str
    means: Sequence[float]
    stds: Sequence[float]


def reranking_gain(
    shares: Sequence[float], gains: Sequence[Gain], evaluated: Sequence[float], measure: str, label: str
) -> str | None:
    """Recall by the share of the pool that is re-ranked, and below it the share that needs a gradient.

    Args:
        shares: (S,) in ascending order.
        gains: the trained encoder first.
        evaluated: (S,) the share of the pool whose gradients all queries together need.
        measure: what `gains` measure.

    Returns:
        None without shares.
    """
    if not shares or not gains:
        return None
    across = [100 * share for share in shares]
    styles = [
        {"fmt": "-o", "color": FIRST, "linewidth": 2},
        {"fmt": "--s", "color": SECOND, "linewidth": 1.6},
    ]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.7))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1.2])
        for gain, style in zip(gains, styles, strict=False):
            above.errorbar(
                across, gain.means, yerr=gain.stds, markersize=4.5, elinewidth=1.2, label=gain.name, **style
            )
        above.set_ylabel(measure)
        above.margins(y=0.12)
        above.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            borderaxespad=0.2,
            handlelength=2.4,
            borderpad=0.1,
        )
        below.plot(
            across, [100 * share for share in evaluated], "-o", color=MUTED, markersize=3, linewidth=1.4
        )
        below.set_ylabel("gradients")
        below.set_ylim(bottom=0)
        below.margins(y=0.18)
        below.yaxis.set_major_locator(MaxNLocator(3))
        below.set_xlabel("share of the pool re-ranked for each query")
        for axis in (below.xaxis, below.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}%"))
        figure.align_ylabels()
        return _as_page_svg(figure, "reranking", "Recall and gradients by the share re-ranked", label)


def sketch_widths(
    widths: Sequence[int],
    measured: Sequence[float],
    predicted: Sequence[float],
    agreement: Sequence[float],
    label: str,
) -> str | None:
    """Mean error of sketched cosines, measured and predicted, and rank agreement by width; None without any.

    All are (W,), the widths in ascending order.
    """
    if not widths:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.7))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1.3])
        above.plot(widths, predicted, "--", color=SECOND, linewidth=1.6, label="predicted")
        above.plot(widths, measured, "-o", color=FIRST, markersize=4.5, linewidth=2, label="measured")
        above.set_yscale("log")
        above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        above.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
        above.yaxis.set_minor_locator(NullLocator())
        above.set_ylabel("mean error")
        above.legend(loc="upper right", handlelength=2.4)
        below.plot(widths, agreement, "-o", color=FIRST, markersize=4.5, linewidth=2)
        below.set_ylabel("rank agreement")
        below.yaxis.set_major_locator(MaxNLocator(3))
        below.margins(y=0.18)
        below.set_xscale("log", base=2)
        below.set_xticks(widths, [f"{width:,}" for width in widths])
        below.xaxis.set_minor_locator(NullLocator())
        if len(widths) > _MOST_LEVEL_LABELS:
            below.tick_params(axis="x", rotation=30)
        below.set_xlabel("sketch width")
        figure.align_ylabels()
        return _as_page_svg(figure, "widths", "Error and rank agreement by sketch width", label)


@dataclass(frozen=True)
class CostPoint:
    """A method's seconds, above 0, and its quality with the ends of its interval."""

    name: str
    seconds: float
    mean: float
    low: float
    high: float


def cost_against_quality(points: Sequence[CostPoint], measure: str, label: str) -> str:
    """What each method reaches against the seconds it takes, with its interval; names stand at the right.

    Args:
        points: at least one.
        measure: what the means are of.
    """
    ordered = sorted(points, key=lambda point: point.mean)
    low, high = min(p.low for p in points), max(p.high for p in points)
    height = max(3.2, 0.24 * len(points) + 0.9)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(1.6 * _WIDTH, height))
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[1.25, 1])
        pad = 0.06 * (high - low or 1)
        axes.set_ylim(low - pad, high + pad)
        places = _spaced([p.mean for p in ordered], 0.2 / height * 1.25 * (high - low + 2 * pad), low, high)
        right = max(p.seconds for p in points) * 2
        for point, place in zip(ordered, places, strict=True):
            error = [[point.mean - point.low], [point.high - point.mean]]
            axes.errorbar(
                point.seconds, point.mean, yerr=error, fmt="o", color=FIRST, markersize=5, elinewidth=1.2
            )
            axes.plot([point.seconds, right], [point.mean, place], color=RULE, linewidth=0.7, zorder=0.5)
            beside.annotate(
                f"{point.name}  {point.mean:.3f}",
                (0, place),
                va="center",
                fontsize=8.5,
                color=INK,
                annotation_clip=False,
            )
        axes.set_xscale("log")
        axes.set_xlim(right=right)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("seconds for all test queries")
        axes.set_ylabel(measure)
        beside.axis("off")
        beside.set_xlim(0, 1)
        return _as_page_svg(figure, "cost", "Quality and cost of every method", label)


def _spaced(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels at rising values, at least `gap` apart where low to high has the room."""
    gap = min(gap, (high - low) / max(1, len(values) - 1))
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + gap) if places else value)
    # What was pushed above the top is pushed back from there.
    top = high
    for number in range(len(places) - 1, -1, -1):
        places[number] = min(places[number], top)
        top = places[number] - gap
    return places


def as_file(svg: str) -> str:
    """A figure as a file of its own, twice its size, its type dark on light pages and light on dark ones."""
    width, height = (2 * float(side) for side in re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
    opening, rest = svg.split(">", 1)
    return (
        f'{opening} width="{width:g}" height="{height:g}"><style>:root {{ color: #1f2328 }} '
        f"@media (prefers-color-scheme: dark) {{ :root {{ color: #e6edf3 }} }}</style>{rest}\n"
    )


def _writable(text: str) -> str:
    """`text` without the characters that XML knows no way to write."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def _draw_trend(axes: Axes, across: npt.NDArray[np.float64], up: npt.NDArray[np.float64]) -> None:
    """Median and quartiles of the exact influence in each tenth of the predicted one."""
    tenths = np.array_split(np.argsort(across, kind="stable"), 10)
    middle = np.array([np.median(across[rows]) for rows in tenths])
    low, median, high = np.array([np.percentile(up[rows], [25, 50, 75]) for rows in tenths]).T
    axes.errorbar(
        middle,
        median,
        yerr=[median - low, high - median],
        fmt="-o",
        color=SECOND,
        markersize=4,
        linewidth=1.8,
        elinewidth=1.3,
        path_effects=[withStroke(linewidth=4, foreground=PAPER)],
    )


def _frame(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = (float(bound) for bound in np.percentile(values, [0.5, 99.5]))
    pad = max(0.04 * (high - low), 1e-3)
    return low - pad, high + pad


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def _as_page_svg(figure: Figure, name: str, title: str, label: str) -> str:
    """The figure as an `<svg>` element: no prologue, no fixed size, ids of its own, the page's colours.

    `title` and `label` are read to those who cannot see it: what it is, and what it shows.
    """
    drawn = io.StringIO()
    figure.savefig(
        drawn,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    # The drawing's own type would be the only one on the page that a reader may not have.
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans, sans-serif)", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans, sans-serif)", svg)
    width, height = figure.get_size_inches() * 72
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="plot" role="img" aria-labelledby="{name}-title" aria-describedby="{name}-desc" '
        f'viewBox="0 0 {width:g} {height:g}"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(_writable(label))}</desc>'
    )
    return re.sub(r"\n\s*\n+", "\n", re.sub(r"^<svg[^>]*>", lambda _: opening, svg, count=1))
