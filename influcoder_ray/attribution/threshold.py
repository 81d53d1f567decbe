"""A threshold chosen by validation: from labelled rows, the score from which on a row is flagged.

Shapes: L labelled rows.
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Validation:
    """What flagging every labelled row with at least `threshold` comes to.

    Attributes:
        labelled, unwanted: labelled rows, and those among them that should go.
        flagged: labelled rows at or above the threshold.
        precision: share of the flagged that should go; 1 where nothing is flagged.
        recall: share of what should go that is flagged.
        f1: their harmonic mean.
        average_precision: of the whole ranking: the mean precision at each unwanted row.
    """

    threshold: float
    labelled: int
    unwanted: int
    flagged: int
    precision: float
    recall: float
    f1: float
    average_precision: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Curve:
    """Each distinct score as a threshold, highest first: (T,) values, and what they flag."""

    thresholds: npt.NDArray[np.float32]
    flagged: npt.NDArray[np.int64]
    found: npt.NDArray[np.int64]
    labelled: int
    unwanted: int

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        return self.found / self.flagged

    @property
    def average_precision(self) -> float:
        """The sum over thresholds of (R_n - R_(n-1)) P_n; equal scores are one step."""
        steps = np.diff(self.found, prepend=0) / self.unwanted
        return float((steps * self.precision).sum())

    def at(self, threshold: float) -> Validation:
        above = int(np.searchsorted(-self.thresholds, -np.float64(threshold), side="right"))
        flagged, found = (int(self.flagged[above - 1]), int(self.found[above - 1])) if above else (0, 0)
        return Validation(
            threshold=float(threshold),
            labelled=self.labelled,
            unwanted=self.unwanted,
            flagged=flagged,
            precision=found / flagged if flagged else 1.0,
            recall=found / self.unwanted,
            f1=2 * found / (flagged + self.unwanted),
            average_precision=self.average_precision,
        )


def at_threshold(
    scores: npt.NDArray[np.float32], unwanted: npt.NDArray[np.bool_], threshold: float
) -> Validation:
    """What a given threshold comes to on labelled rows.

    Args:
        scores: (L,).
        unwanted: (L,) whether each row should go.

    Raises:
        ValueError: no row that should go, or none that should stay.
    """
    return _curve(scores, unwanted).at(threshold)


def with_best_f1(scores: npt.NDArray[np.float32], unwanted: npt.NDArray[np.bool_]) -> Validation:
    """The threshold with the highest F1; of equal ones the highest, which flags least.

    Raises:
        ValueError: as `at_threshold`.
    """
    curve = _curve(scores, unwanted)
    return curve.at(curve.thresholds[np.argmax(2 * curve.found / (curve.flagged + curve.unwanted))])


def with_precision(
    scores: npt.NDArray[np.float32], unwanted: npt.NDArray[np.bool_], precision: float
) -> Validation:
    """The threshold with the highest recall whose precision is at least as wanted.

    Raises:
        ValueError: as `at_threshold`; no threshold has that precision.
    """
    curve = _curve(scores, unwanted)
    fitting = np.flatnonzero((curve.precision >= precision) & (curve.found > 0))
    if not len(fitting):
        raise ValueError(
            f"no threshold has a precision of {precision:g} on the {curve.labelled:,} labelled rows; "
            f"the highest is {curve.precision.max():.3f}"
        )
    most = curve.found[fitting].max()
    return curve.at(curve.thresholds[fitting[curve.found[fitting] == most][0]])


def _curve(scores: npt.NDArray[np.float32], unwanted: npt.NDArray[np.bool_]) -> _Curve:
    total = int(unwanted.sum())
    if total in (0, len(unwanted)):
        missing = "should stay" if total else "should go"
        raise ValueError(f"of the {len(unwanted):,} labelled rows with a score none {missing}")
    order = np.argsort(-scores, kind="stable")
    ordered, marks = scores[order], unwanted[order].astype(np.int64)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return _Curve(ordered[last], last + 1, np.cumsum(marks, dtype=np.int64)[last], len(marks), total)
