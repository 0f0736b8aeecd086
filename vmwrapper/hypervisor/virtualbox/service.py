"""VBoxSVC, VirtualBox's service, which all of one user's programs of VirtualBox's share."""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress

import psutil

log = logging.getLogger(__name__)

_NAME = "VBoxSVC"
_NEEDS_NOTHING = {_NAME, "VBoxXPCOMIPCD", "VBoxManage", "VBoxService", "VBoxClient", "VBoxDRMClient"}
"""Who else is there may have a machine, or be a user's window on some."""
_ITS = ("VBOX_USER_HOME", "VBOX_IPC_SOCKETID")
_ENDING_LIMIT_S = 5.0


def end_if_unneeded() -> bool:
    """End the service, and say whether it was there to be ended: not where anything else of VirtualBox's runs.

    To be called where it is stuck: it can wait for ever for the end of what it was at when a machine was killed, and
    all later jobs would wait with it.
    """
    ours = list(_of_our_profile())
    needed_by = [process for process in ours if _program(process) not in _NEEDS_NOTHING]
    services = [process for process in ours if _program(process) == _NAME]
    if needed_by or not services:
        return False
    for service in services:
        with suppress(psutil.Error):
            log.warning("VirtualBox's service is stuck, and no machine needs it: ending process %d", service.pid)
            service.kill()
            service.wait(timeout=_ENDING_LIMIT_S)
    return True


def _of_our_profile() -> Iterator[psutil.Process]:
    """VirtualBox's programs that are this user's, and maybe others'."""
    user = psutil.Process().username()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if _program(process).startswith(("VBox", "VirtualBox")) and _may_be_of(process, user):
                yield process


def _program(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name().removesuffix(".exe")
    return ""


def _may_be_of(process: psutil.Process, user: str) -> bool:
    try:
        if process.username() != user:
            return False
        environment = process.environ()
    except psutil.AccessDenied:
        return True
    return all(environment.get(name) == os.environ.get(name) for name in _ITS)
