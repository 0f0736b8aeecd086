"""docs/client-script.md and --help leave no step out."""

import re
from pathlib import Path

import pytest

from vmwrapper.cli import _RUN_EPILOG
from vmwrapper.twin.script import Verb

DOC = (Path(__file__).parents[2] / "docs/client-script.md").read_text()


@pytest.mark.parametrize("verb", Verb)
def test_every_step_is_explained(verb: Verb) -> None:
    assert re.search(rf"^\|.*`{verb.value}[` ].*\|.*\|$", DOC, re.MULTILINE)
    assert re.search(rf"^  (.*  )?{verb.value}\b", _RUN_EPILOG, re.MULTILINE)


@pytest.mark.parametrize("status", [0, 30, 75, 130, 193, 203, 206])
def test_every_exit_status_of_its_own_is_explained(status: int) -> None:
    assert f"\n| {status} | " in DOC
