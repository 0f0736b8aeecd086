"""What is wrong with a job file, all of it at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lxml.etree import _Element as Element

from vmwrapper.errors import JobError

MAX_PROBLEMS = 100
_MAX_EXCERPT = 60


def excerpt(text: str) -> str:
    """As much of a stranger's text as a message has room for, on one line."""
    ending = "..." if len(text) > _MAX_EXCERPT else ""
    return repr(text[:_MAX_EXCERPT])[1:-1] + ending


def line_of(element: Element) -> int:
    """Say on which line, from 1, the start tag of `element` ends; 0 if unknown."""
    return cast("int | None", element.sourceline) or 0


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake, and what would be right."""

    line: int
    """Counted from 1; 0 where the whole file is meant."""
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


class BadJobFile(JobError):
    """The job file can't be used; the message is its path and every problem on a line of its own, in line order."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        lines = [f"{path} is not a usable job file:", *(f"  {problem}" for problem in self.problems)]
        if len(self.problems) == MAX_PROBLEMS:
            lines.append("  and perhaps more: reading stopped here")
        super().__init__("\n".join(lines))


class Problems:
    """Collects the problems of the job file at `path`, so that its author sees them together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[Problem] = []

    def add(self, line: int, text: str) -> None:
        """Note a problem. Raises BadJobFile when there are so many that nobody reads on."""
        self._found.append(Problem(line, text))
        if len(self._found) == MAX_PROBLEMS:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raise BadJobFile if a problem was added."""
        if self._found:
            raise BadJobFile(self._path, self._found)
