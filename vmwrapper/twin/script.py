"""What the twin of the client is to do, as a person writes it: one step on a line, `#` before a comment."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vmwrapper.errors import JobError
from vmwrapper.job.problems import MAX_PROBLEMS, Problem, excerpt

LARGEST_BYTES = 1 << 20

_LONGEST_WAIT_S = 24 * 3600
_LONGEST_TRICKLE = 4096


class Verb(Enum):
    """What a step begins with."""

    WAIT_FOR = "wait for"
    WAIT = "wait"
    SUSPEND = "suspend"
    RESUME = "resume"
    QUIT = "quit"
    KILL = "kill"
    START = "start"
    ABORT = "abort"
    HEARTBEATS_OFF = "heartbeats off"
    HEARTBEATS_ON = "heartbeats on"
    NETWORK_OFF = "network off"
    NETWORK_ON = "network on"
    REREAD = "reread"
    TRICKLE_DOWN = "trickle down"
    CPU_LIMIT = "cpu limit"


_NEED_APP = {
    Verb.WAIT_FOR,
    Verb.SUSPEND,
    Verb.RESUME,
    Verb.QUIT,
    Verb.KILL,
    Verb.ABORT,
    Verb.HEARTBEATS_OFF,
    Verb.REREAD,
    Verb.TRICKLE_DOWN,
}
_END_APP = {Verb.QUIT, Verb.KILL}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a script."""

    line: int
    """Counted from 1."""
    verb: Verb
    text: str = ""
    """What `wait for` and `trickle down` are about."""
    number: float = 0.0
    """Seconds of `wait`, above 0; percent of `cpu limit`, above 0 and at most 100."""

    @property
    def needs_app(self) -> bool:
        """Whether it is about an app that runs."""
        return self.verb in _NEED_APP

    def __str__(self) -> str:
        argument = self.text or (f"{self.number:g}" if self.number else "")
        return " ".join(filter(None, (self.verb.value, argument)))


class BadScript(JobError):
    """The script can't be played; the message is its path and every problem on a line of its own."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        lines = [f"{path} is not a usable script for the client:", *(f"  {each}" for each in problems[:MAX_PROBLEMS])]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"  and {len(problems) - MAX_PROBLEMS} more")
        super().__init__("\n".join(lines))


def read_script(path: Path) -> tuple[Step, ...]:
    """The steps of the script at `path`. Raises BadScript with all that is wrong with it."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise BadScript(path, [Problem(0, f"it can't be read: {error.strerror}")]) from error
    if len(content) > LARGEST_BYTES:
        raise BadScript(path, [Problem(0, f"it is larger than {LARGEST_BYTES} bytes, the most that is read")])
    steps, problems = parse_script(content)
    if problems:
        raise BadScript(path, problems)
    return steps


def parse_script(content: bytes) -> tuple[tuple[Step, ...], list[Problem]]:
    """The steps, and all that is wrong with them, by lines."""
    steps: list[Step] = []
    problems: list[Problem] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            if words := _words(line):
                steps.append(_step(number, words))
        except ValueError as error:
            problems.append(Problem(number, str(error)))
    return tuple(steps), sorted([*problems, *_out_of_order(steps)])


def _words(line: bytes) -> list[str]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ValueError("a quote is not closed: a text with ' in it goes between two \"") from error
    if not all(word.isprintable() for word in words):
        raise ValueError("it has control characters")
    return words


def _step(line: int, words: list[str]) -> Step:
    for verb in Verb:
        own = verb.value.split()
        if words[: len(own)] == own:
            return _with_argument(line, verb, words[len(own) :])
    known = ", ".join(f"`{verb.value}`" for verb in Verb)
    raise ValueError(f"`{excerpt(' '.join(words))}` is no step; there are {known}")


def _with_argument(line: int, verb: Verb, words: list[str]) -> Step:
    text = " ".join(words)
    match verb:
        case Verb.WAIT:
            return Step(line, verb, number=_number(verb, text, at_most=_LONGEST_WAIT_S, unit="s"))
        case Verb.CPU_LIMIT:
            return Step(line, verb, number=_number(verb, text, at_most=100, unit="%"))
        case Verb.WAIT_FOR if not text:
            raise ValueError('`wait for` needs a text of the log, such as `wait for "Running the program"`')
        case Verb.TRICKLE_DOWN if not 0 < len(text.encode()) <= _LONGEST_TRICKLE:
            raise ValueError(f"`{verb.value}` needs a text of at most {_LONGEST_TRICKLE} bytes")
        case Verb.WAIT_FOR | Verb.TRICKLE_DOWN:
            return Step(line, verb, text=text)
    if text:
        raise ValueError(f"`{verb.value}` stands alone; behind it is `{excerpt(text)}`")
    return Step(line, verb)


def _number(verb: Verb, text: str, *, at_most: float, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= at_most:
        raise ValueError(f"`{verb.value}` needs a number above 0, at most {at_most:g} {unit}; it is `{excerpt(text)}`")
    return number


def _out_of_order(steps: list[Step]) -> Iterator[Problem]:
    """Find steps at which there would be no app, and an end that never comes."""
    ended: Step | None = None
    suspended: Step | None = None
    for step in steps:
        if ended and ended.verb is Verb.ABORT:
            yield Problem(step.line, f"nothing can follow the `abort` on line {ended.line}: the job is over")
            return
        if step.verb is Verb.START and ended is None:
            yield Problem(step.line, "the app runs: `start` goes behind `quit` or `kill`")
        if step.needs_app and ended:
            yield Problem(
                step.line, f"no app runs since the `{ended.verb.value}` on line {ended.line}: `start` it before"
            )
        if step.verb in _END_APP or step.verb is Verb.ABORT:
            ended, suspended = step, None
        elif step.verb is Verb.START:
            ended = None
        elif step.verb is Verb.SUSPEND:
            suspended = step
        elif step.verb is Verb.RESUME:
            suspended = None
    if suspended:
        yield Problem(suspended.line, "the job would stay suspended for ever: `resume` it")
