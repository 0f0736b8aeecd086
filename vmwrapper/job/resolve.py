"""Finds every file that a job names, once, before anything boots."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.folders import image_folder
from vmwrapper.job.model import DEFAULT_IMAGE, Job, Task
from vmwrapper.job.problems import Problems

Resolve = Callable[[str], Path]
"""Logical name → the file that it stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTask:
    """A task and the host's files that its names stand for."""

    task: Task
    image: Path
    inputs: Mapping[str, Path]
    """Everything that is copied in, by its name in the guest: program, data, standard input."""
    packages: Mapping[str, Path]
    """What is installed in the guest, by its name in the job file."""
    outputs: Mapping[str, Path]
    """Everything that is copied out, by its name in the guest: outputs, standard output and error. Links followed."""


def resolve_job(
    job: Job, path: Path, resolve: Resolve, *, slot: Path, image_suffixes: Sequence[Sequence[str]]
) -> tuple[ResolvedTask, ...]:
    """Find the files of all tasks. `path` is the job file's own, for messages; outputs must lie below `slot`.

    `image_suffixes` has for each task how the names of images end that its backend runs.
    Raises BadJobFile that names everything that is missing.
    """
    problems = Problems(path)
    written: set[Path] = set()
    tasks = []
    for task, suffixes in zip(job.tasks, image_suffixes, strict=True):
        resolved = _task(task, resolve, suffixes, problems, written=written)
        _check_outputs(resolved, slot, problems)
        written.update(resolved.outputs.values())
        tasks.append(resolved)
    problems.raise_if_any()
    return tuple(tasks)


def _task(
    task: Task, resolve: Resolve, image_suffixes: Sequence[str], problems: Problems, *, written: Collection[Path]
) -> ResolvedTask:
    """`written` are the files that earlier tasks make."""
    image = find_image(task.vm, resolve, image_suffixes)
    if image is None:
        help_ = "make it with `vmwrapper image build`" if task.vm == DEFAULT_IMAGE else f"no {resolve(task.vm)}.*"
        problems.add(task.line, f"there is no base image {task.vm!r}: {help_}")
    inputs = {name: resolve(name) for name in dict.fromkeys(filter(None, (task.innerjob, *task.data, task.stdin)))}
    packages = {name: resolve(name) for name in task.packages}
    for name, file in (inputs | packages).items():
        if not _is_file(file) and file.resolve() not in written:
            problems.add(task.line, f"the input {name!r} is missing: no file {file}")
    outputs = {name: resolve(name) for name in dict.fromkeys(filter(None, (*task.output, task.stdout, task.stderr)))}
    return ResolvedTask(
        task=task,
        image=image or Path(),
        inputs=inputs,
        packages=packages,
        outputs={name: file.resolve() for name, file in outputs.items()},
    )


def _check_outputs(resolved: ResolvedTask, slot: Path, problems: Problems) -> None:
    line = resolved.task.line
    for name, file in resolved.outputs.items():
        if not file.is_relative_to(slot.resolve()):
            problems.add(line, f"the output {name!r} would be written outside of {slot}")
        elif not _is_folder(file.parent):
            problems.add(line, f"the output {name!r} has no directory to go to: no {file.parent}")
        elif _is_folder(file):
            problems.add(line, f"the output {name!r} would replace a directory: {file}")


def _is_file(path: Path) -> bool:
    """Whether there is a file that we can see. A name that the host can't have, such as one too long, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def find_image(name: str, resolve: Resolve, suffixes: Sequence[str]) -> Path | None:
    """The base image of this name: a logical name or a path beside the job file, then one in the image folder.

    A name without one of the suffixes is completed by the first of them for which there is a file.
    """
    return next((file for file in _image_candidates(name, resolve, suffixes) if _is_file(file)), None)


def _image_candidates(name: str, resolve: Resolve, suffixes: Sequence[str]) -> Iterator[Path]:
    places = [image_folder() / name]
    if name != DEFAULT_IMAGE:
        places.insert(0, resolve(name))
    for place in places:
        yield place
        yield from (place.with_name(place.name + suffix) for suffix in suffixes)
