"""docs/job-file.md, with docs/self-running.md, leaves nothing out that a job file can say, or a run can end with."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmwrapper.errors import VmwrapperError
from vmwrapper.exit_status import ExitStatus
from vmwrapper.job.model import SelfRunning
from vmwrapper.job.reader import read_job
from vmwrapper.job.vmapps import _NOT_YET, _TAGS

ROOT = Path(__file__).parents[2]
SELF_RUNNING = (ROOT / "docs/self-running.md").read_text()
DOC = (ROOT / "docs/job-file.md").read_text() + SELF_RUNNING
EXAMPLES = "".join(re.findall(r"```xml\n(.*?)```", DOC, re.DOTALL))


@pytest.mark.parametrize("tag", _TAGS)
def test_every_tag_is_in_the_table_in_an_example_and_explained(tag: str) -> None:
    assert re.search(rf"^\|.*`{tag}`.*\|$", DOC, re.MULTILINE)
    assert f"<{tag}>" in EXAMPLES
    assert f"**`{tag}`**" in DOC


def test_the_example_of_a_guest_that_works_by_itself_is_a_good_job_file(tmp_path: Path) -> None:
    [example] = re.findall(r"```xml\n(.*?)```", SELF_RUNNING, re.DOTALL)
    (tmp_path / "job.xml").write_text(example)
    [task] = read_job(tmp_path / "job.xml").tasks
    assert task.self_running == SelfRunning(
        completion_file="done",
        duration_s=64800,
        temporary_exit_file="later",
        heartbeat_file="beat",
        heartbeat_interval_s=1200,
    )
    assert (task.innerjob, task.fraction_done_filename, task.title) == ("", "fraction", "the guest theory-2.1")


@pytest.mark.parametrize("tag", _NOT_YET)
def test_every_tag_that_is_not_in_this_version_is_mentioned(tag: str) -> None:
    assert f"`{tag}`" in DOC


@pytest.mark.parametrize("tag", [*_TAGS, "network"])
def test_every_tag_is_in_the_table_of_the_readme(tag: str) -> None:
    assert re.search(rf"^\|.*`{tag}`.*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_every_exit_status_is_explained() -> None:
    explained = {
        int(number) for row in re.findall(r"^\| ([0-9, ]+) \|", DOC, re.MULTILINE) for number in row.split(",")
    }
    assert {error.exit_status for error in all_errors(VmwrapperError)} - explained == set()


def test_every_exit_status_is_in_the_table_for_administrators() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.*) \|$", (ROOT / "docs/boinc.md").read_text(), re.MULTILINE)
    assert rows == [(str(int(status)), status.name, status.meaning) for status in ExitStatus]


def all_errors(error: type[VmwrapperError]) -> Iterator[type[VmwrapperError]]:
    yield error
    for kind in error.__subclasses__():
        yield from all_errors(kind)
