"""Each fault point is really there, and does its harm there: so that a refactoring breaks this, not the torture."""

import asyncio
import errno
import inspect
import os
from pathlib import Path

import pytest

from vmwrapper.durable import write_durably
from vmwrapper.errors import HostDiskFailed
from vmwrapper.folders import RECORD_FILE
from vmwrapper.outputs import _arrival

from .faulty import Fault
from .points import POINTS, Kind, Point


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Armed":
    return Armed(monkeypatch, tmp_path / "mark")


class Armed:
    """Arms faults for one test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mark: Path) -> None:
        self._monkeypatch = monkeypatch
        self.mark = mark

    def __call__(self, name: str, kind: Kind, nth: int = 1) -> None:
        owner, attribute = POINTS[name].owner_and_name()
        self._monkeypatch.setattr(owner, attribute, POINTS[name].function())  # so that it is put back
        Fault(POINTS[name], kind, nth, self.mark).arm()


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_each_point_is_a_function_that_its_owner_has(point: Point) -> None:
    owner, name = point.owner_and_name()
    assert name in vars(owner)
    assert inspect.isfunction(point.function()) or point.function() is os.fsync
    assert point.says
    assert point.kinds


def test_no_two_points_have_a_name() -> None:
    source = (Path(__file__).parent / "points.py").read_text()
    assert source.count("    _before(") + source.count("    _after(") == len(POINTS)


@pytest.mark.parametrize("name", ["error-record-fsync", "error-record-rename", "error-record-folder"])
def test_the_record_fails_at_its_points(name: str, armed: Armed, tmp_path: Path) -> None:
    armed(name, Kind.EIO, nth=2)
    write_durably(tmp_path / RECORD_FILE, b"1")
    assert not armed.mark.exists()
    with pytest.raises(HostDiskFailed, match="torture"):
        write_durably(tmp_path / RECORD_FILE, b"2")
    assert armed.mark.read_text() == f"{name}\n"
    write_durably(tmp_path / RECORD_FILE, b"3")
    assert (tmp_path / RECORD_FILE).read_bytes() == b"3"


def test_harm_is_done_once_by_all_that_have_the_same_mark(armed: Armed, tmp_path: Path) -> None:
    armed.mark.touch()
    armed("error-record-fsync", Kind.EIO)
    write_durably(tmp_path / RECORD_FILE, b"1")


def test_files_of_other_names_don_t_count(armed: Armed, tmp_path: Path) -> None:
    armed("error-output-rename", Kind.ENOSPC)
    write_durably(tmp_path / RECORD_FILE, b"1")
    arrived = _arrival(tmp_path / "output")
    arrived.touch()
    with pytest.raises(OSError, match="torture") as failed:
        arrived.replace(tmp_path / "output")
    assert failed.value.errno == errno.ENOSPC


def test_a_coroutine_fails_when_it_is_awaited(armed: Armed) -> None:
    class Unused:
        path = "/run/x"

    armed("prepare", Kind.EIO)
    coroutine = POINTS["prepare"].function()(Unused(), scratch=False)
    with pytest.raises(OSError, match="torture"):
        asyncio.run(coroutine)
