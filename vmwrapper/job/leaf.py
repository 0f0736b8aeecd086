"""One tag of a task, with its value."""

from dataclasses import dataclass
from typing import Any

from vmwrapper.job.problems import excerpt


@dataclass(frozen=True, slots=True)
class Leaf:
    """As it stands in the job file."""

    tag: str
    line: int
    value: Any

    def __str__(self) -> str:
        return f"<{self.tag}>{excerpt(str(self.value))}</{self.tag}>"
