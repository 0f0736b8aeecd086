"""Finds every file that a job names, once, before anything boots."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.folders import image_folder
from vmwrapper.job.model import DEFAULT_IMAGE, Job, Task, is_own_file
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
    unlinked: frozenset[str] = frozenset()
    """Outputs that a client will look for, another time, under their own names in the slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folders:
    """Where a job's files may lie. Links are followed, here and in what is asked."""

    slot: Path
    project_dir: Path | None

    def __str__(self) -> str:
        return " and ".join(str(folder) for folder in (self.slot, self.project_dir) if folder)

    def have(self, file: Path) -> bool:
        return any(file.is_relative_to(folder) for folder in (self.slot, self.project_dir) if folder)

    def may_give(self, file: Path) -> bool:
        """Whether a guest may be shown it: by hand, that is for the person to say."""
        return self.project_dir is None or self.have(file)


def resolve_job(  # noqa: PLR0913  (each of another kind)
    job: Job,
    path: Path,
    resolve: Resolve,
    *,
    slot: Path,
    project_dir: Path | None = None,
    image_suffixes: Sequence[Sequence[str]],
) -> tuple[ResolvedTask, ...]:
    """Find the files of all tasks. `path` is the job file's own, for messages.

    Outputs must lie below `slot` or `project_dir`; where there is such a one, everything else must, too, but the
    default guest, which comes with us. `image_suffixes` has for each task how the names of images end that its backend
    runs.
    Raises BadJobFile that names everything that is missing.
    """
    folders = _Folders(slot=real(slot), project_dir=real(project_dir) if project_dir else None)
    problems = Problems(path)
    written: dict[Path, str] = {}
    tasks = []
    for task, suffixes in zip(job.tasks, image_suffixes, strict=True):
        resolved = _task(task, resolve, suffixes, folders, problems)
        _check_image(resolved, folders, problems)
        _check_inputs(resolved, folders, written, problems)
        _check_outputs(resolved, folders, written, problems)
        tasks.append(resolved)
    _check_kept(tasks, real(path), folders.slot, problems)
    problems.raise_if_any()
    return tuple(tasks)


def real(path: Path) -> Path:
    """The path with all links followed as far as there are any. Never raises."""
    return Path(os.path.realpath(path))


def _task(
    task: Task, resolve: Resolve, image_suffixes: Sequence[str], folders: _Folders, problems: Problems
) -> ResolvedTask:
    image = find_image(task.vm, resolve, image_suffixes)
    if image is None:
        problems.add(task.line, f"there is no base image {task.vm!r}: {_why_no_image(task.vm, resolve)}")
    names = filter(None, (*task.output, task.stdout, task.stderr))
    outputs = {name: real(resolve(name)) for name in names}
    unlinked = [name for name, file in outputs.items() if folders.project_dir and file == folders.slot / name]
    return ResolvedTask(
        task=task,
        image=image or Path(),
        inputs={name: resolve(name) for name in filter(None, (task.innerjob, *task.data, task.stdin))},
        packages={name: resolve(name) for name in task.packages},
        outputs=outputs,
        unlinked=frozenset(unlinked),
    )


def _check_image(resolved: ResolvedTask, folders: _Folders, problems: Problems) -> None:
    task, image = resolved.task, real(resolved.image)
    if task.vm != DEFAULT_IMAGE and _is_file(image) and not folders.may_give(image):
        problems.add(task.line, f"the base image {task.vm!r} lies outside of {folders}: {image}")


def _check_inputs(resolved: ResolvedTask, folders: _Folders, written: Collection[Path], problems: Problems) -> None:
    """`written` are the files that earlier tasks make."""
    for name, file in {**resolved.inputs, **resolved.packages}.items():
        if not folders.may_give(real(file)):
            problems.add(resolved.task.line, f"the input {name!r} lies outside of {folders}: {real(file)}")
        elif _is_own(real(file), folders.slot):
            problems.add(resolved.task.line, f"the input {name!r} is one of the wrapper's own files: {real(file)}")
        elif not _is_file(file) and real(file) not in written:
            problems.add(resolved.task.line, f"the input {name!r} is missing: no file {file}")


def _check_outputs(resolved: ResolvedTask, folders: _Folders, written: dict[Path, str], problems: Problems) -> None:
    """`written` maps the files of earlier outputs to their names; this task's are added."""
    for name, file in resolved.outputs.items():
        if problem := _output_problem(file, folders, written.get(file)):
            problems.add(resolved.task.line, f"the output {name!r} {problem}")
        written[file] = name


def _output_problem(file: Path, folders: _Folders, written_as: str | None) -> str | None:
    """What is wrong with writing an output to a file, as the end of a sentence."""
    if not folders.have(file):
        return f"would be written outside of {folders}"
    if written_as is not None:
        return f"would be written to the same file as {written_as!r}: {file}"
    if _is_own(file, folders.slot):
        return f"would overwrite one of the wrapper's own files: {file}"
    if not _is_folder(file.parent):
        return f"has no directory to go to: no {file.parent}"
    if _is_folder(file):
        return f"would replace a directory: {file}"
    return None


def _check_kept(tasks: Sequence[ResolvedTask], job_file: Path, slot: Path, problems: Problems) -> None:
    """Find outputs that would overwrite, by way of links, what the job is made of."""
    kept = {job_file: "the job file"}
    for resolved in tasks:
        kept[real(resolved.image)] = "a base image"
        if program := resolved.inputs.get(resolved.task.innerjob):
            kept[real(program)] = "a program"
    for resolved in tasks:
        for name, file in resolved.outputs.items():
            if file in kept and not _is_own(file, slot):  # which was found before
                problems.add(resolved.task.line, f"the output {name!r} would overwrite {kept[file]}: {file}")


def _is_own(file: Path, slot: Path) -> bool:
    return file != slot and file.is_relative_to(slot) and is_own_file(file.relative_to(slot).parts[0])


def _why_no_image(name: str, resolve: Resolve) -> str:
    if name == DEFAULT_IMAGE:
        return "make it with `vmwrapper image build`"
    if _exists(place := resolve(name)):
        return f"{place} is no regular file; name a disk image"
    return " and ".join(f"no {place}.*" for place in _image_places(name, resolve))


def _is_file(path: Path) -> bool:
    """Whether there is a file that we can see. A name that the host can't have, such as one too long, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
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
    names = [name + suffix for suffix in ("", *suffixes)]
    yield from (resolve(each) for each in names if name != DEFAULT_IMAGE)
    yield from (image_folder() / each for each in names)


def _image_places(name: str, resolve: Resolve) -> list[Path]:
    beside = [resolve(name)] if name != DEFAULT_IMAGE else []
    return list(dict.fromkeys([*beside, image_folder() / name]))  # of an absolute path: it alone
