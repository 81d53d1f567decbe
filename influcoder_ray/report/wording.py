"""Numbers as a reader sees them. What is missing or not finite is a dash."""

import math

from influcoder_ray.report.contents import number
from influcoder_ray.report.texts import one_line

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def decimal(value: object, places: int = 3) -> str:
    """A figure with a fixed number of places and a true minus sign."""
    known = number(value)
    if known is None:
        return MISSING
    # "-0.000" would show a sign that the rounded figure no longer has.
    return f"{round(known, places) + 0.0:.{places}f}".replace("-", MINUS)


def count(value: object) -> str:
    """A whole number with thousands set apart: 12,400."""
    known = number(value)
    return MISSING if known is None else f"{round(known):,}".replace("-", MINUS)


def percent(share: object) -> str:
    """A share in 0 to 1 as a percentage.

    Something never reads as 0%, and what is short of all never reads as 100%.
    """
    known = number(share)
    if known is None:
        return MISSING
    value = 100 * known
    if 0 < value < 0.01:
        return "under 0.01%"
    if value == 0 or value == 100:
        return f"{value:.0f}%"
    if value < 1:
        return f"{value:.2f}%"
    return f"{min(value, 99.9) if value < 100 else value:.1f}%"


def percentile(value: object) -> str:
    """A percentile in 0 to 100, rounded down, so that the top of a large corpus never reads as 100."""
    known = number(value)
    if known is None:
        return MISSING
    # A percentile that was stored in float32 may lie 1e-5 below its own two digits.
    hundredths = math.floor(known * 100 + 1e-3)
    # Of ten million rows the second is nearer to 100 than that.
    hundredths = min(hundredths, 9_999) if known < 100 else hundredths
    text = f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")
    return text.replace("-", MINUS)


def rate(value: object) -> str:
    """A number per second, to about three digits."""
    known = number(value)
    if known is None:
        return MISSING
    return f"{known:,.0f}" if abs(known) >= 100 else f"{known:.3g}"


def duration(seconds: object) -> str:
    """A time in the two units that matter: 0.4 s, 41 s, 3 min 12 s, 5 h 02 min."""
    known = number(seconds)
    if known is None or known < 0:
        return MISSING
    if known < 9.95:
        return f"{known:.1f} s"
    whole = round(known)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(known / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def plural(amount: object, one: str, many: str) -> str:
    """A whole number with its noun: 1 row, 12,400 rows."""
    return f"{count(amount)} {one if number(amount) == 1 else many}"


def spoken(name: object) -> str:
    """A key of a JSON file as words on one line."""
    return one_line(str(name).replace("_", " "), 60)
