"""What VBoxManage's complaints mean, and so what is to be done about them.

Source: the result codes in VirtualBox's src/VBox/Main/idl/VirtualBox.xidl, and XPCOM's; the texts in src/VBox/Main and
src/VBox/Frontends/VBoxManage. Nearly all were met with VirtualBox 7.2 (see tests/unit/test_virtualbox_faults.py).
"""

import re
from enum import Enum


class Fault(Enum):
    """Why VirtualBox did not do what it was told."""

    LOCKED = "another session has the machine just now"
    UNREACHABLE = "VirtualBox's service is just ending or has ended"
    WRONG_STATE = "the machine is not in a state for that"
    NOT_FOUND = "there is no such machine, snapshot or disk"
    IN_USE = "a disk is used by a machine in another way, or a snapshot has descendants"
    SAME_UUID = "another disk or machine with the same UUID is registered"
    INACCESSIBLE = "a file of the machine is not there or can't be read"
    NO_SPACE = "the host's disk is full"
    GUEST_BUSY = "the guest takes no commands just now"
    LOGIN_REFUSED = "the guest does not let this user log in"
    GUEST_FAILED = "the guest could not run what it was told to"
    OTHER = "something else"

    @property
    def passes(self) -> bool:
        """Whether the same may succeed in a moment: nothing was done, and nothing stays so by itself."""
        return self in (Fault.LOCKED, Fault.UNREACHABLE)


_TABLE = (
    # (result code, or "" for any or none; text, or "" for any; what it means): the first that fits
    ("", "not able to logon|VERR_(AUTHENTICATION_FAILURE|ACCOUNT_RESTRICTED)", Fault.LOGIN_REFUSED),
    (
        "",
        "guest session|guest (execution|control) service|guest process|VERR_NOT_READY|Guest Additions",
        Fault.GUEST_BUSY,
    ),
    ("", "VERR_DISK_FULL|DrvVD_DISKFULL|VERR_FILE_TOO_BIG|No space left", Fault.NO_SPACE),
    ("", "more than one child|has (\\d+ )?(child|differencing)|cannot be directly attached|storage type", Fault.IN_USE),
    ("", "UUID .* already exists|the same UUID as", Fault.SAME_UUID),
    ("", "not currently running|is not running \\(currently|not have any snapshots", Fault.WRONG_STATE),
    ("", "Could not find file for the medium", Fault.NOT_FOUND),
    ("80bb0001", "", Fault.NOT_FOUND),
    ("80bb0002", "", Fault.WRONG_STATE),
    ("80bb0004|80004005", "VERR_(FILE|PATH)_NOT_FOUND|VERR_ACCESS_DENIED", Fault.INACCESSIBLE),
    ("80bb0007", "medium|hard disk", Fault.IN_USE),
    ("80bb000[7b]", "", Fault.LOCKED),
    ("80bb000c", "", Fault.IN_USE),
    ("80070005", "functionality is limited", Fault.INACCESSIBLE),
    ("80070005", "object is not ready.*MediumWrap", Fault.LOCKED),  # another machine's disk, which is just being closed
    ("80070005", "", Fault.WRONG_STATE),
    ("800706b[aef]|80470002|c1f30001|80004004", "", Fault.UNREACHABLE),
    ("", "COM server is not running|failed to create the (VirtualBox|session) object", Fault.UNREACHABLE),
)
_CODE = re.compile(r"\(0x([0-9a-f]{8})\)", re.IGNORECASE)
_NAMES = re.compile("'[^'\n]*'")


def fault(said: str) -> Fault:
    """What VBoxManage means by what it printed to its standard error."""
    said = _NAMES.sub("''", said)  # which strangers have given
    found = _CODE.search(said)
    code = found[1].lower() if found else ""
    for codes, text, meant in _TABLE:
        if (not codes or re.fullmatch(codes, code)) and (not text or re.search(text, said, re.IGNORECASE | re.DOTALL)):
            return meant
    return Fault.OTHER
