"""Tasks whose guest works by itself: which tags make one, and which make no sense for it.

Source: BOINC's samples/vboxwrapper/vboxjob.cpp, whose names these tags have.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmwrapper.job.leaf import Leaf
from vmwrapper.job.model import CpuTimeBasis, SelfRunning
from vmwrapper.job.problems import Problems

FIELDS = {
    "completion_trigger_file": "completion_file",
    "job_duration": "duration_s",
    "temporary_exit_trigger_file": "temporary_exit_file",
    "heartbeat_filename": "heartbeat_file",
    "minimum_heartbeat_interval": "heartbeat_interval_s",
}
"""Of `SelfRunning`, by their tags."""
ENDINGS = ("completion_trigger_file", "job_duration")
"""One of these makes a task without a program one of a self-running guest."""
_FILES = ("completion_trigger_file", "temporary_exit_trigger_file", "heartbeat_filename", "fraction_done_filename")
_NEEDS_PROGRAM = (
    "command_line",
    "setenv",
    "stdin_filename",
    "stdout_filename",
    "stderr_filename",
    "package",
    "user",
    "password",
    "datadir",
    "partial_credit",
    "credit_report",
)
_OF_NOBODY = "makes no sense for a guest that works by itself, as one without <innerjob> does"


def check_self_running(line: int, leaves: Sequence[Leaf], tags: Iterable[str], problems: Problems) -> None:
    """Find what does not belong together in a task of these leaves; `tags` are all of it, also those with a problem."""
    there = {leaf.tag: leaf for leaf in leaves}
    tags = set(tags)
    if program := there.get("innerjob"):
        for tag in FIELDS.keys() & there.keys():
            text = f"<{tag}> is for a guest that works by itself: <innerjob> on line {program.line} makes it run that"
            problems.add(there[tag].line, text)
    elif "innerjob" not in tags and not tags.isdisjoint(ENDINGS):
        _check_tags(leaves, problems)
        _check_files(leaves, problems)
    elif "innerjob" not in tags:
        problems.add(line, f"<task> has no <innerjob>, which names the program{_hint(tags)}")


def _hint(tags: set[str]) -> str:
    if tags.isdisjoint(FIELDS):
        return ""
    return f"; nor has it <{ENDINGS[0]}> or <{ENDINGS[1]}>, by which a guest that works by itself ends"


def _check_tags(leaves: Iterable[Leaf], problems: Problems) -> None:
    for leaf in leaves:
        if leaf.tag in _NEEDS_PROGRAM:
            problems.add(leaf.line, f"<{leaf.tag}> {_OF_NOBODY}")
        elif leaf.tag == "disk_mb" and leaf.value == 0:
            problems.add(leaf.line, f"{leaf} leaves no room in the folder that a guest shares that works by itself")
        elif leaf.tag == "cpu_time_basis" and leaf.value is CpuTimeBasis.GUEST:
            problems.add(leaf.line, f"{leaf} {_OF_NOBODY}: nobody there tells its CPU time")


def _check_files(leaves: Iterable[Leaf], problems: Problems) -> None:
    """Find what can't be a file in the shared folder, or is one for two things."""
    taken: dict[str, Leaf] = {}
    for leaf in leaves:
        if leaf.tag == "fraction_done_filename" and posixpath.isabs(leaf.value):
            problems.add(leaf.line, f"{leaf} must be a file in the shared folder, without / at its beginning")
        if leaf.tag not in (*_FILES, "data"):
            continue
        if earlier := taken.get(leaf.value):
            if {leaf.tag, earlier.tag} != {"data"}:  # which is found elsewhere
                problems.add(leaf.line, f"{leaf} is the same file as <{earlier.tag}> on line {earlier.line}")
        else:
            taken[leaf.value] = leaf


def self_running_of(values: Mapping[str, Sequence[Any]]) -> SelfRunning | None:
    """How the guest works by itself, by the values of a task's tags; None where it does not."""
    if values.keys().isdisjoint(ENDINGS):
        return None
    return SelfRunning(**{field: values[tag][0] for tag, field in FIELDS.items() if tag in values})
