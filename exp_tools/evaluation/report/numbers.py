"""Scores as text: the same digits everywhere, and a dash for what is undefined."""

from collections.abc import Mapping
from typing import Any

UNDEFINED = "–"


def number(value: float | None, sign: str = "") -> str:
    """Three decimals; a dash for NaN, or null in JSON. `sign` "+" writes the sign of a difference."""
    return UNDEFINED if value is None or value != value else f"{value:{sign}.3f}"


def interval(bounds: Mapping[str, Any]) -> str:
    """`low to high`, for a sentence or a page; a dash for what is undefined."""
    return UNDEFINED if number(bounds["low"]) == UNDEFINED else f"{number(bounds['low'])} to {number(bounds['high'])}"


def bracketed(low: float | None, high: float | None, sign: str = "") -> str:
    """`[low, high]`, for a column of a table; a dash for what is undefined."""
    return UNDEFINED if number(low) == UNDEFINED else f"[{number(low, sign)}, {number(high, sign)}]"
