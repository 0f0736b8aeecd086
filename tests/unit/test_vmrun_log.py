"""What is read from VMware's files: a machine's log, a list of snapshots, their descriptions."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.errors import GuestPoweredOff, HostDiskFailed, SnapshotUnusable
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.hypervisor.vmware.vmrun.snapshots import Saved, saved, snapshot_names
from vmwrapper.hypervisor.vmware.vmrun.vm_log import VmLog

from .fuzzing import fuzzed

STAMP = "2026-11-22T10:00:00.000Z In(05) vcpu-0 "
ONE = Saved(number=3, states={"machine-Snapshot1.vmsn": "0" * 32}, made_by={"processor": "x"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vmware.log"


def test_there_is_none_yet(file: Path) -> None:
    assert VmLog(file).end() is None


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("PIIX4: PM Soft Off.  Good-bye.", GuestPoweredOff),
        ("Chipset: The guest has requested that the virtual machine be hard reset.", GuestPoweredOff),
        ("[msg.hbacommon.outofspace] There is no more space for virtual disk 'root.vmdk'.", HostDiskFailed),
    ],
)
def test_an_end(file: Path, line: str, error: type[Exception]) -> None:
    log = VmLog(file)
    file.write_text(f"{STAMP}Log for VMware Workstation\n")
    assert log.end() is None
    with file.open("a") as more:
        more.write(f"{STAMP}{line[:10]}")
    assert log.end() is None
    with file.open("a") as more:
        more.write(f"{line[10:]}\n")
    assert isinstance(log.end(), error)
    assert log.end() is None  # nothing new


def test_it_begins_anew_when_it_has_grown(file: Path) -> None:
    log = VmLog(file)
    file.write_text("x" * 10_000 + "\n")
    assert log.end() is None
    file.write_text(f"{STAMP}PIIX4: PM Soft Off.  Good-bye.\n")
    assert isinstance(log.end(), GuestPoweredOff)


def test_what_it_complains_of(file: Path) -> None:
    log = VmLog(file)
    assert log.complaints == "(nothing)"
    file.write_text("a\n" + "".join(f"vmx Msg_Post: Error {number}\n" for number in range(9)) + "b\n")
    log.end()
    assert log.complaints.splitlines() == [f"vmx Msg_Post: Error {number}" for number in range(4, 9)]


def test_the_list_of_snapshots() -> None:
    assert snapshot_names("Total snapshots: 2\nvmwrapper-1\n\tvmwrapper-2\n") == ["vmwrapper-1", "vmwrapper-2"]
    assert snapshot_names("Total snapshots: 0\n") == snapshot_names("") == snapshot_names("odd\nx\n") == []


def test_a_description_comes_back() -> None:
    assert saved(ONE.snapshot()) == ONE


@pytest.mark.parametrize(
    "description",
    [
        "",
        "7",
        "[]",
        "{}",
        "[" * 100_000,
        '{"states": {}, "made_by": {}}',
        '{"states": {"../x.vmsn": "00000000000000000000000000000000"}, "made_by": {}}',
        '{"states": {"/etc/x.vmem": "00000000000000000000000000000000"}, "made_by": {}}',
        '{"states": {"x.vmsn": 7}, "made_by": {}}',
        '{"states": {"x.vmsn": "00000000000000000000000000000000"}, "made_by": 7}',
        '{"states": {"x.vmsn": "00000000000000000000000000000000"}, "made_by": {}, "number": 1}',
    ],
)
def test_a_description_that_makes_no_sense(description: str) -> None:
    with pytest.raises(SnapshotUnusable, match="makes no sense"):
        saved(Snapshot(1, description))


@fuzzed
@given(description=st.text())
def test_whatever_a_description_is(description: str) -> None:
    with pytest.raises(SnapshotUnusable):
        saved(Snapshot(1, description))
