"""The native dialect of job files: `<job_desc>` with tasks of one `<vm>`, and one `<innerjob>` or none.

Source: the job file of David Weir's VmApps, January 2009; tags beyond his are optional.
"""

import difflib
import posixpath
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lxml.etree import _Element as Element

from vmwrapper.job.leaf import Leaf
from vmwrapper.job.model import OWN_FILES, PACKAGE_SUFFIXES, CpuTimeBasis, Job, Task, is_own_file, package_kind
from vmwrapper.job.problems import Problems, excerpt, line_of
from vmwrapper.job.self_running import FIELDS, check_self_running, self_running_of

_BLANKS = " \t\r\n"  # XML's own
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_CHARACTER_BUT_BLANK = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MAX_COMMAND_LINE = 65_536
_MAX_SCRATCH_MIB = 1 << 20  # its file system takes 10 s to make for 1 TiB; for 16 TiB longer than the launcher waits
_SYSTEM_FOLDER = re.compile(r"/(boot|etc|lib(32|64)?|s?bin|usr|var|(dev|proc|run|sys)(/.*)?)")


def _flag(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("must be 0 or 1")
    return text == "1"


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return convert


def _positive_number(most: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        number = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", text) else 0.0
        if not 0 < number <= most:
            raise ValueError(f"must be a number above 0, at most {most:g}")
        return number

    return convert


def _one_of(*choices: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return convert


def _image(text: str) -> str:
    if not text or _CONTROL_CHARACTER.search(text):
        raise ValueError("must name a base image, such as default")
    return text


def _user(text: str) -> str:
    if not re.fullmatch("[a-z_][a-z0-9_-]{0,31}", text):
        raise ValueError("must be a user name of at most 32 of a-z, 0-9, _ and -, begun with a letter or _")
    return text


def _guest_directory(text: str) -> str:
    normalized = text == posixpath.normpath(text) and not text.startswith("//")
    if not text.startswith("/") or text == "/" or not normalized or _CONTROL_CHARACTER.search(text):
        raise ValueError("must be an absolute directory below /, without '.', '..' or needless slashes, such as /tmp")
    if _SYSTEM_FOLDER.fullmatch(text):
        raise ValueError("must not be a directory that the guest itself needs")
    return text


def _guest_file(text: str) -> str:
    if not text or text != posixpath.normpath(text) or text.startswith(("..", "//")) or _CONTROL_CHARACTER.search(text):
        raise ValueError("must be a file in the guest: an absolute path, or one below datadir, without '.' and '..'")
    return text


def _name(text: str) -> str:
    components = re.split(r"[/\\]", text)
    controls = _CONTROL_CHARACTER_BUT_BLANK.search(text)
    if not {"", ".", ".."}.isdisjoint(components) or re.match("[A-Za-z]:", text) or controls:
        raise ValueError("must be a relative file name, without '.', '..', needless slashes or a drive")
    if is_own_file(components[0]):
        raise ValueError(f"must not be one of the wrapper's own files ({', '.join(OWN_FILES)})")
    return text


def _package(text: str) -> str:
    if package_kind(text) is None:
        raise ValueError(f"must be a file whose name ends in {', '.join(PACKAGE_SUFFIXES)}")
    return _name(text)


def _arguments(text: str) -> tuple[str, ...]:
    if len(text) > _MAX_COMMAND_LINE:  # shlex takes the square of a word's length
        raise ValueError(f"must have at most {_MAX_COMMAND_LINE} characters")
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError("must close every quote, and end in no backslash") from error


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("must be NAME=value, with a name of letters, digits and _ not begun by a digit")
    return name, value


def _cpu_time_basis(text: str) -> CpuTimeBasis:
    return CpuTimeBasis(_one_of(*CpuTimeBasis)(text))


@dataclass(frozen=True, slots=True)
class _Tag:
    field: str
    convert: Callable[[str], Any]
    """Makes the field's value of the stripped text; raises ValueError with what the text must be."""
    repeats: bool = False


_TAGS = {
    "vm": _Tag("vm", _image),
    "user": _Tag("user", _user),
    "password": _Tag("password", str),  # any text will do, so that no message quotes it
    "datadir": _Tag("datadir", _guest_directory),
    "innerjob": _Tag("innerjob", _name),
    "data": _Tag("data", _name, repeats=True),
    "output": _Tag("output", _name, repeats=True),
    "partial_credit": _Tag("partial_credit", _flag),
    "snapshots": _Tag("snapshots", _flag),
    "backend": _Tag("backend", _one_of("qemu", "virtualbox", "vmware")),
    "memory_mb": _Tag("memory_mib", _whole_number(64, 1 << 20)),
    "cpus": _Tag("cpus", _whole_number(1, 255)),
    "disk_mb": _Tag("scratch_mib", _whole_number(0, _MAX_SCRATCH_MIB)),
    "weight": _Tag("weight", _positive_number(1e6)),
    "command_line": _Tag("arguments", _arguments),
    "setenv": _Tag("environment", _setting, repeats=True),
    "stdin_filename": _Tag("stdin", _name),
    "stdout_filename": _Tag("stdout", _name),
    "stderr_filename": _Tag("stderr", _name),
    "package": _Tag("packages", _package, repeats=True),
    "time_limit": _Tag("time_limit_s", _positive_number(1e9)),
    "checkpoint_interval": _Tag("checkpoint_interval_s", _positive_number(1e9)),
    "fraction_done_filename": _Tag("fraction_done_filename", _guest_file),
    "completion_trigger_file": _Tag("completion_file", _name),
    "job_duration": _Tag("duration_s", _positive_number(1e9)),
    "temporary_exit_trigger_file": _Tag("temporary_exit_file", _name),
    "heartbeat_filename": _Tag("heartbeat_file", _name),
    "minimum_heartbeat_interval": _Tag("heartbeat_interval_s", _positive_number(1e9)),
    "credit_report": _Tag("credit_report", _guest_file),
    "cpu_time_basis": _Tag("cpu_time_basis", _cpu_time_basis),
}
_NOT_YET = {  # tag: values that ask for nothing, and why others are refused
    "network": (
        ("0",),
        "no network that QEMU can give keeps a guest from this computer's own servers and its neighbours",
    ),
}
_KNOWN_TAGS = (*_TAGS, *_NOT_YET)
_REPEATING_TAGS = {name for name, tag in _TAGS.items() if tag.repeats}
_WRITTEN_TAGS = {"output", "stdout_filename", "stderr_filename"}


def parse_vmapps(root: Element, problems: Problems) -> Job:
    """Make a Job of `<job_desc>`, or raise BadJobFile with all that is wrong with it."""
    _check_holds_tags_only(root, problems)
    tasks = []
    output_lines: dict[str, int] = {}
    for element in root:
        if element.tag == "task":
            leaves = _read_task(element, problems)
            tags = [leaf.tag for leaf in element]
            check_self_running(line_of(element), leaves, tags, problems)
            _check_names(leaves, output_lines, problems)
            tasks.append((line_of(element), leaves))
        else:
            problems.add(line_of(element), _unknown_tag(element.tag, ["task"]))
    if not tasks:
        problems.add(line_of(root), "<job_desc> has no <task>, and needs at least one")
    problems.raise_if_any()
    return Job(tasks=tuple(_make_task(line, leaves) for line, leaves in tasks))


def _read_task(task: Element, problems: Problems) -> list[Leaf]:
    """Read the leaves of a task, in their order, without those that have a problem."""
    _check_holds_tags_only(task, problems)
    _check_occurrences(task, problems)
    return [leaf for element in task if (leaf := _read_leaf(element, problems))]


def _check_occurrences(task: Element, problems: Problems) -> None:
    first_lines: dict[str, int] = {}
    for element in task:
        tag = element.tag
        if tag in first_lines and tag not in _REPEATING_TAGS:
            problems.add(line_of(element), f"<{tag}> is here again: a task has one, and line {first_lines[tag]} has it")
        elif tag in _KNOWN_TAGS:
            first_lines[tag] = line_of(element)
    if "vm" not in first_lines:
        problems.add(line_of(task), "<task> has no <vm>, which names the base image, such as default")


def _read_leaf(element: Element, problems: Problems) -> Leaf | None:
    tag, line, text = element.tag, line_of(element), (element.text or "").strip(_BLANKS)
    if tag not in _KNOWN_TAGS:
        problems.add(line, _unknown_tag(tag, _KNOWN_TAGS))
        return None
    _check_no_attributes(element, problems)
    if len(element):
        problems.add(line, f"<{tag}> holds text only, but there is a tag in it")
    elif tag in _NOT_YET:
        harmless, reason = _NOT_YET[tag]
        if text not in harmless:
            problems.add(line, f"<{tag}>{excerpt(text)}</{tag}> is refused: {reason}")
    else:
        try:
            return Leaf(tag, line, _TAGS[tag].convert(text))
        except ValueError as error:
            problems.add(line, f"<{tag}> {error}; it is '{excerpt(text)}'")
    return None


def _check_names(leaves: list[Leaf], earlier_outputs: dict[str, int], problems: Problems) -> None:
    """Find names that clash within a task, or with what earlier tasks write, to which this task's outputs are added."""
    program_lines = {leaf.value: leaf.line for leaf in leaves if leaf.tag == "innerjob"}
    lines_by_tag: dict[str, dict[str, int]] = {"data": {}, "output": {}, "package": {}}
    for leaf in leaves:
        if leaf.tag in _WRITTEN_TAGS:
            if leaf.value in program_lines:
                line = program_lines[leaf.value]
                problems.add(leaf.line, f"{leaf} would overwrite the program, <innerjob> on line {line}")
            if leaf.value in earlier_outputs:
                line = earlier_outputs[leaf.value]
                problems.add(leaf.line, f"{leaf} is written by an earlier task, too: line {line} has it")
        lines = lines_by_tag.get(leaf.tag, {})
        if leaf.value in lines:
            problems.add(leaf.line, f"{leaf} is here again: line {lines[leaf.value]} has it")
        lines.setdefault(leaf.value, leaf.line)
    earlier_outputs.update({leaf.value: leaf.line for leaf in leaves if leaf.tag in _WRITTEN_TAGS})


def _make_task(line: int, leaves: list[Leaf]) -> Task:
    values: defaultdict[str, list[Any]] = defaultdict(list)
    for leaf in leaves:
        values[leaf.tag].append(leaf.value)
    fields: dict[str, Any] = {
        _TAGS[tag].field: tuple(found) if _TAGS[tag].repeats else found[0]
        for tag, found in values.items()
        if tag not in FIELDS
    }
    return Task(line=line, self_running=self_running_of(values), **fields)


def _check_holds_tags_only(element: Element, problems: Problems) -> None:
    _check_no_attributes(element, problems)
    texts = [(element, element.text), *((child, child.tail) for child in element)]
    for tag, text in texts:
        if text and text.strip(_BLANKS):
            problems.add(line_of(tag), f"<{element.tag}> holds tags only, but there is text after <{excerpt(tag.tag)}>")


def _check_no_attributes(element: Element, problems: Problems) -> None:
    if names := ", ".join(map(str, element.keys())):
        problems.add(line_of(element), f"<{element.tag}> has no attributes; remove {excerpt(names)}")


def _unknown_tag(tag: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(tag.lower(), known, n=1)
    hint = f": did you mean <{nearest[0]}>?" if nearest else ""
    return f"unknown tag <{excerpt(tag)}>{hint}"
