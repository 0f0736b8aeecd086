"""A figure that was measured, and what helps to measure it."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, in its unit, and what was aimed at."""

    name: str
    unit: str
    values: Sequence[float]
    aim: float | None = None
    more_is_better: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def rounds(number: int, what: str) -> Iterable[int]:
    return track(range(number), what, console=Console(stderr=True), transient=True)
