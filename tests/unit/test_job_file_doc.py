"""docs/job-file.md leaves nothing out that a job file can say, or a run can end with."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmwrapper.errors import VmwrapperError
from vmwrapper.exit_status import ExitStatus
from vmwrapper.job.vmapps import _NOT_YET, _TAGS

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/job-file.md").read_text()
EXAMPLES = "".join(re.findall(r"```xml\n(.*?)```", DOC, re.DOTALL))


@pytest.mark.parametrize("tag", _TAGS)
def test_every_tag_is_in_the_table_in_an_example_and_explained(tag: str) -> None:
    assert re.search(rf"^\|.*`{tag}`.*\|$", DOC, re.MULTILINE)
    assert f"<{tag}>" in EXAMPLES
    assert f"**`{tag}`**" in DOC


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
