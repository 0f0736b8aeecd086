"""Which files are a job's: in a real project, its server tells the client."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmwrapper.job.model import DEFAULT_IMAGE, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFiles:
    """The job's files in the folder that plays the project's directory."""

    job_file: Path
    """Absolute."""
    names: Collection[str]
    """What it names beside itself; nothing outside of its folder."""
    outputs: Collection[str]

    @property
    def project_dir(self) -> Path:
        return self.job_file.parent

    @property
    def output_paths(self) -> Sequence[Path]:
        return [self.project_dir / name for name in self.outputs]


def job_files(job: Job, job_file: Path, *, image_suffixes: Collection[str]) -> TaskFiles:
    """All that a job names, whether it is there or not; `job_file` is absolute."""
    names: dict[str, None] = {}  # in their order
    outputs: dict[str, None] = {}
    for task in job.tasks:
        written = [*task.output, *filter(None, (task.stdout, task.stderr))]
        outputs |= dict.fromkeys(written)
        images = _images(task.vm, job_file.parent, image_suffixes)
        read = filter(None, (task.innerjob, *task.data, task.stdin, *task.packages))
        names |= dict.fromkeys([*images, *read, *written])
    return TaskFiles(job_file=job_file, names=tuple(names), outputs=tuple(outputs))


def _images(name: str, folder: Path, suffixes: Collection[str]) -> Iterator[str]:
    """The base images of that name that are beside the job file. Only these a project could have sent."""
    if name == DEFAULT_IMAGE or name.startswith("/") or ".." in Path(name).parts:
        return
    for each in dict.fromkeys([name, *(name + suffix for suffix in suffixes)]):
        if (folder / each).is_file():
            yield each
