"""What is understood on the command line."""

import pytest

from vmwrapper.cli import _chosen

OPTIONS = ["--boot-limit", "7", "--backend", "qemu", "--debug"]


@pytest.mark.parametrize("words", [[*OPTIONS, "run", "job.xml"], ["run", *OPTIONS, "job.xml"], OPTIONS])
def test_options_go_before_the_command_or_behind_it(words: list[str]) -> None:
    chosen = _chosen(words)
    assert (chosen.boot_limit, chosen.backend, chosen.debug, chosen.verbose) == (7, "qemu", True, False)


def test_without_options_there_are_defaults() -> None:
    chosen = _chosen(["run", "job.xml"])
    assert (chosen.boot_limit, chosen.backend, chosen.debug, chosen.keep) == (300, None, False, False)
