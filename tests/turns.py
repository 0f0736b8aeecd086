"""Whose turn it is among pytest-xdist's workers, where some tests want the machine for themselves."""

import fcntl
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_FOLDER = "turns"


class Turns:
    """In a worker: runs a test marked `alone` while no other runs."""

    def __init__(self, folder: Path) -> None:
        self._gate = folder / "gate"
        self._floor = folder / "floor"

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """They come first, when nobody is in the middle of a long one for which they would have to wait."""
        items.sort(key=lambda item: item.get_closest_marker("alone") is None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        wants = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
        with self._floor.open("w") as floor:
            with self._gate.open("w") as gate:  # who waits for the floor to empty lets nobody else onto it
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(floor, wants)
            return (yield)


class Hosts:
    """In the controller: gives the workers a folder for their turns."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="vmwrapper-turns-")

    @pytest.hookimpl(optionalhook=True)  # pytest-xdist's
    def pytest_configure_node(self, node: pytest.Session) -> None:
        node.workerinput[_FOLDER] = self._folder.name

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()


def take_turns(config: pytest.Config) -> None:
    """Nothing is to be done where pytest runs by itself."""
    given = getattr(config, "workerinput", None)
    if given is not None:
        config.pluginmanager.register(Turns(Path(given[_FOLDER])))
    elif getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(Hosts())
