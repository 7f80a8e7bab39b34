"""Figures and names as people read them."""

from __future__ import annotations

NOTHING = "–"
"""Where there is no figure."""
_LOWER_IS_BETTER = ("mse", "mae")
_SQNR_LIMIT_DB = 200.0


def bytes_text(count: float | None) -> str:
    """Return decimal units: `46.9 MB`."""
    if count is None:
        return NOTHING
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{significant(count / size)} {unit}"
    return f"{count:.0f} B"


def significant(value: float, digits: int = 3) -> str:
    """Return so many significant digits without exponent: `0.0581`, `12.3`, `1240`."""
    if value == 0:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole:
        return f"{value:.{max(0, digits - whole)}f}"
    text = f"{value:.{digits}g}"
    return f"{value:.2e}" if "e" in text else text


def milliseconds(value: float | None) -> str:
    """Return `30.1 ms`, or microseconds where it takes less than a tenth of one."""
    if value is None:
        return NOTHING
    return f"{significant(value * 1e3)} µs" if value < 0.1 else f"{significant(value)} ms"


def decibels(value: float | None) -> str:
    """Return `32.4 dB`; `exact` where no difference was seen."""
    if value is None:
        return NOTHING
    if value >= _SQNR_LIMIT_DB:
        return "exact"
    return "no signal" if value <= -_SQNR_LIMIT_DB else f"{value:.1f} dB"


def times(value: float | None) -> str:
    """Return `3.97×`."""
    return NOTHING if value is None else f"{significant(value)}×"


def quality_text(metric: str, value: float) -> str:
    """Return hits as percent, errors as they are."""
    return significant(value, 4) if metric in _LOWER_IS_BETTER else f"{100 * value:.2f} %"


def drop_text(metric: str, drop: float | None, baseline: float) -> str:
    """Return a drop in points, or for errors in percent of the original's: `0.20 points lower`."""
    if drop is None:
        return NOTHING
    if metric in _LOWER_IS_BETTER:
        if baseline == 0:
            return "no change" if drop == 0 else f"{significant(drop)} worse"
        amount, unit, worse, better = 100 * drop / baseline, " %", "higher", "lower"
    else:
        amount, unit, worse, better = 100 * drop, " points", "lower", "higher"
    if abs(amount) < 0.005:
        return "no change"
    return f"{abs(amount):.2f}{unit} {worse if amount > 0 else better}"


def printable(text: str) -> str:
    """Return text with what no file or screen can show replaced."""
    return "".join(each if each.isprintable() or each in "\n\t" else "�" for each in text)


def shorten(text: str, length: int) -> str:
    """Return at most `length` characters, cut in the middle: both ends tell layers apart."""
    if len(text) <= length:
        return text
    front = (length - 1) // 2
    return f"{text[:front]}…{text[-(length - 1 - front) :]}"
