"""What VBoxManage's complaints mean: as VirtualBox 7.2 printed them, but where another source is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.virtualbox import faults
from vmwrapper.hypervisor.virtualbox.faults import Fault, fault

from .fuzzing import fuzzed

SAID = {
    "disk full": (
        Fault.NO_SPACE,
        (
            "0%...VBOX_E_FILE_ERROR\n"
            "VBoxManage: error: Failed to create medium\n"
            "VBoxManage: error: VDI: writing pre-header failed for '/slot/y.vdi' (VERR_DISK_FULL)\n"
            "VBoxManage: error: Details: code VBOX_E_FILE_ERROR (0x80bb0004)"
        ),
    ),
    "wrong password": (
        Fault.LOGIN_REFUSED,
        (
            "VBoxManage: error: Waiting for guest process failed: The specified user was not able to logon on guest\n"
            "VBoxManage: error: Details: code VBOX_E_IPRT_ERROR (0x80bb0005), component GuestSessionWrap"
        ),
    ),
    "after going back": (
        Fault.GUEST_BUSY,
        "VBoxManage: error: Error starting guest session (current status is: starting)",
    ),
    "no such folder in the guest": (
        Fault.OTHER,
        (
            'VBoxManage: error: Guest file "/no/f" could not be created or replaced: Guest file "/no/f" not found\n'
            "VBoxManage: error: Details: code VBOX_E_IPRT_ERROR (0x80bb0005), component GuestSessionWrap"
        ),
    ),
    "locked for a session": (
        Fault.LOCKED,
        (
            "VBoxManage: error: The machine 'a' is already locked for a session (or being unlocked)\n"
            "VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)"
        ),
    ),
    "runs already": (
        Fault.LOCKED,
        (
            "VirtualBoxVM: error: The machine 'a' is already locked for a session (or being unlocked)\n"
            "VirtualBoxVM: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)"
        ),
    ),
    "unregistered while locked": (
        Fault.LOCKED,
        (
            "VBoxManage: error: Cannot unregister the machine 'medium' while it is locked\n"
            "VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)"
        ),
    ),
    "session gone": (  # src/VBox/Main/src-client/SessionImpl.cpp
        Fault.LOCKED,
        (
            "VBoxManage: error: The session is not locked (session state: Unlocking)\n"
            "VBoxManage: error: Details: code VBOX_E_INVALID_SESSION_STATE (0x80bb000b)"
        ),
    ),
    "two children": (
        Fault.IN_USE,
        (
            "VBoxManage: error: Snapshot '1' of the machine 'a' cannot be deleted, because it has 2 child snapshots,"
            " which is more than the one snapshot allowed for deletion\n"
            "VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)"
        ),
    ),
    "child media": (
        Fault.IN_USE,
        (
            "VBoxManage: error: Cannot close medium '/base.vdi' because it has 1 child media\n"
            "VBoxManage: error: Details: code VBOX_E_OBJECT_IN_USE (0x80bb000c)"
        ),
    ),
    "still attached": (
        Fault.IN_USE,
        (
            "VBoxManage: error: Medium '/slot/root.vdi' cannot be closed because it is still attached to 1 machines\n"
            "VBoxManage: error: Details: code VBOX_E_OBJECT_IN_USE (0x80bb000c)"
        ),
    ),
    "medium locked": (  # src/VBox/Main/src-server/MediumImpl.cpp, Medium::i_setStateError
        Fault.IN_USE,
        (
            "VBoxManage: error: Medium '/slot/root.vdi' is locked for reading by another task\n"
            "VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)"
        ),
    ),
    "same disk": (
        Fault.SAME_UUID,
        (
            "VBoxManage: error: Cannot register the hard disk '/b.vdi' {3911519e-0} because a hard"
            " disk '/c.vdi' with UUID {3911519e-0} already exists\n"
            "VBoxManage: error: Details: code NS_ERROR_INVALID_ARG (0x80070057)"
        ),
    ),
    "same machine": (
        Fault.SAME_UUID,
        (
            "VBoxManage: error: Registered machine with UUID {11111111-0} ('/a.vbox') already exists"
            "\nVBoxManage: error: Details: code NS_ERROR_INVALID_ARG (0x80070057)"
        ),
    ),
    "registered again": (
        Fault.SAME_UUID,
        (
            "VBoxManage: error: Trying to open a VM config '/a.vbox' which has the same UUID as an existing"
            " virtual machine\nVBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005)"
        ),
    ),
    "not running": (
        Fault.WRONG_STATE,
        "VBoxManage: error: Machine '11111111-2222-3333-4444-555555555555' is not currently running.",
    ),
    "a disk in a list that is just being closed": (
        Fault.LOCKED,
        (
            "VBoxManage: error: The object is not ready\n"
            "VBoxManage: error: Details: code E_ACCESSDENIED (0x80070005), component MediumWrap, interface IMedium, "
            "callee nsISupports"
        ),
    ),
    "not running, for its guest": (
        Fault.WRONG_STATE,
        'VBoxManage: error: Machine "vmwrapper" is not running (currently powered off)!',
    ),
    "no snapshots": (Fault.WRONG_STATE, "This machine does not have any snapshots"),
    "no snapshot at all": (
        Fault.WRONG_STATE,
        (
            "VBoxManage: error: This machine does not have any snapshots\n"
            "VBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005)"
        ),
    ),
    "already paused": (
        Fault.WRONG_STATE,
        ("VBoxManage: error: Already paused\nVBoxManage: error: Details: code VBOX_E_INVALID_VM_STATE (0x80bb0002)"),
    ),
    "not ready": (  # src/VBox/Main/src-all/AutoCaller.cpp
        Fault.WRONG_STATE,
        ("VBoxManage: error: The object is not ready\nVBoxManage: error: Details: code E_ACCESSDENIED (0x80070005)"),
    ),
    "no machine": (
        Fault.NOT_FOUND,
        (
            "VBoxManage: error: Could not find a registered machine with UUID {11111111-2222-3333-4444-555555555555}\n"
            "VBoxManage: error: Details: code VBOX_E_OBJECT_NOT_FOUND (0x80bb0001)"
        ),
    ),
    "no disk": (
        Fault.NOT_FOUND,
        (
            "VBoxManage: error: Could not find file for the medium '/slot/no.vdi' (VERR_FILE_NOT_FOUND)\n"
            "VBoxManage: error: Details: code VBOX_E_FILE_ERROR (0x80bb0004)"
        ),
    ),
    "no base of a snapshot": (
        Fault.INACCESSIBLE,
        (
            "0%...10%...VBOX_E_FILE_ERROR\n"
            "VBoxManage: error: Failed to take snapshot\n"
            "VBoxManage: error: Could not open the medium storage unit '/slot/root.vdi'.\n"
            "VBoxManage: error: VD: error VERR_FILE_NOT_FOUND opening image file '/slot/root.vdi'\n"
            "VBoxManage: error: Details: code VBOX_E_FILE_ERROR (0x80bb0004)"
        ),
    ),
    "no settings": (
        Fault.INACCESSIBLE,
        (
            "VBoxManage: error: Runtime error opening '/slot/a.vbox' for reading VERR_FILE_NOT_FOUND.\n"
            "VBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005)"
        ),
    ),
    "machine without its files": (
        Fault.INACCESSIBLE,
        (
            "VBoxManage: error: The object functionality is limited\n"
            "VBoxManage: error: Details: code E_ACCESSDENIED (0x80070005)"
        ),
    ),
    "service ended": (  # its code as in XPCOM's nsError.h
        Fault.UNREACHABLE,
        "VBoxManage: error: Code NS_ERROR_CALL_FAILED (0x800706BE) - Call to remote object failed",
    ),
    "service can't be started": (
        Fault.UNREACHABLE,
        (
            "VBoxManage: error: Failed to create the VirtualBox object!\n"
            "VBoxManage: error: Code NS_ERROR_SOCKET_FAIL (0xC1F30200) - IPC daemon socket error\n"
            "VBoxManage: error: Most likely, the VirtualBox COM server is not running or failed to start."
        ),
    ),
    "settings damaged": (
        Fault.OTHER,
        (
            "VBoxManage: error: Couldn't find end of Start Tag x line 1.\n"
            "VBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005)"
        ),
    ),
    "nothing that is known": (Fault.OTHER, "VBoxManage: error: Out of bananas\nVBoxManage: error: code (0x12345678)"),
    "nothing at all": (Fault.OTHER, ""),
}


@pytest.mark.parametrize(("meant", "said"), SAID.values(), ids=SAID)
def test_meaning(meant: Fault, said: str) -> None:
    assert fault(said) is meant


@pytest.mark.parametrize("row", faults._TABLE, ids=[row[1] or row[0] for row in faults._TABLE])
def test_each_row_makes_a_difference(monkeypatch: pytest.MonkeyPatch, row: tuple[str, str, Fault]) -> None:
    monkeypatch.setattr(faults, "_TABLE", tuple(other for other in faults._TABLE if other is not row))
    assert any(fault(said) is not meant for meant, said in SAID.values())


def test_each_fault_is_met() -> None:
    assert {meant for meant, _ in SAID.values()} == set(Fault) - {
        Fault.GUEST_FAILED
    }  # of which VBoxManage says nothing


@pytest.mark.parametrize("name", ["VERR_DISK_FULL", "medium", "UUID (0x80bb000c) already exists"])
def test_names_mean_nothing(name: str) -> None:
    said = (
        f"VBoxManage: error: The machine '{name}' is already locked for a session (or being unlocked)\n"
        "VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007)"
    )
    assert fault(said) is Fault.LOCKED


def test_only_what_ends_by_itself_passes() -> None:
    assert {one for one in Fault if one.passes} == {Fault.LOCKED, Fault.UNREACHABLE}


@fuzzed
@given(st.text() | st.lists(st.sampled_from([said for _, said in SAID.values()])).map("\n".join))
def test_whatever_is_said_means_something(said: str) -> None:
    assert fault(said) in Fault
