"""Finds every file that a job names, once, before anything boots."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    outputs: Mapping[str, Path]
    """Everything that is copied out, by its name in the guest: outputs, standard output and error."""


def resolve_job(
    job: Job, path: Path, resolve: Resolve, *, slot: Path, image_suffixes: Sequence[Sequence[str]]
) -> tuple[ResolvedTask, ...]:
    """Find the files of all tasks. `path` is the job file's own, for messages; outputs must lie below `slot`.

    `image_suffixes` has for each task how the names of images end that its backend runs.
    Raises BadJobFile that names everything that is missing.
    """
    problems = Problems(path)
    tasks = tuple(
        _task(task, resolve, slot, suffixes, problems) for task, suffixes in zip(job.tasks, image_suffixes, strict=True)
    )
    problems.raise_if_any()
    return tasks


def _task(task: Task, resolve: Resolve, slot: Path, image_suffixes: Sequence[str], problems: Problems) -> ResolvedTask:
    image = find_image(task.vm, resolve, image_suffixes)
    if image is None:
        help_ = (
            "make it with `vmwrapper image build`"
            if task.vm == DEFAULT_IMAGE
            else "; ".join(f"no {candidate}" for candidate in _image_candidates(task.vm, resolve, image_suffixes[:1]))
        )
        problems.add(task.line, f"there is no base image {task.vm!r}: {help_}")
    inputs = {name: resolve(name) for name in dict.fromkeys(filter(None, (task.innerjob, *task.data, task.stdin)))}
    for name, file in inputs.items():
        if not file.is_file():
            problems.add(task.line, f"the input {name!r} is missing: no file {file}")
    outputs = {name: resolve(name) for name in dict.fromkeys(filter(None, (*task.output, task.stdout, task.stderr)))}
    for name, file in outputs.items():
        if not file.resolve().is_relative_to(slot.resolve()):
            problems.add(task.line, f"the output {name!r} would be written outside of {slot}")
        elif file.is_dir():
            problems.add(task.line, f"the output {name!r} would replace a directory: {file}")
    return ResolvedTask(task=task, image=image or Path(), inputs=inputs, outputs=outputs)


def find_image(name: str, resolve: Resolve, suffixes: Sequence[str]) -> Path | None:
    """The base image of this name: a logical name or a path beside the job file, then one in the image folder.

    A name without one of the suffixes is completed by the first of them for which there is a file.
    """
    return next((file for file in _image_candidates(name, resolve, suffixes) if file.is_file()), None)


def _image_candidates(name: str, resolve: Resolve, suffixes: Sequence[str]) -> Iterator[Path]:
    places = [image_folder() / name]
    if name != DEFAULT_IMAGE:
        places.insert(0, resolve(name))
    for place in places:
        yield place
        yield from (place.with_name(place.name + suffix) for suffix in suffixes)
