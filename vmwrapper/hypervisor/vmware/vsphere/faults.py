"""What vSphere's faults mean, and so what is to be done about them: one table, by pyvmomi's names.

A fault that is not in the table means what the nearest of its kinds in it does. The table has all faults that the
methods which are called are declared to raise (tests/unit/test_vsphere_faults.py).

Source: the vSphere Web Services API reference, "Fault Types", and pyvmomi's declarations of each method.
"""

import ssl
from enum import Enum
from http.client import HTTPException
from xml.parsers.expat import ExpatError

from pyVmomi import vmodl

from vmwrapper.errors import TemporaryFailure
from vmwrapper.hostile import one_line

_MESSAGE_LETTERS = 500


class Fault(Enum):
    """Why vSphere did not do what it was told."""

    UNREACHABLE = "the server does not answer, or the connection was cut"
    NOT_TRUSTED = "its certificate is not one to be trusted"
    SESSION_OVER = "nobody is logged in any more"
    LOGIN_REFUSED = "it does not let this user log in"
    FORBIDDEN = "this user may not do that, or its licence does not allow it"
    GONE = "there is no such thing, or not any more"
    EXISTS = "there is one of this name already"
    BUSY = "another task works on it just now"
    WRONG_STATE = "the machine is not in a state for that"
    NO_SPACE = "a datastore is full"
    NO_RESOURCES = "the hosts have no processor or memory left for it"
    NO_FILE = "there is no such file"
    UNUSABLE_FILE = "a file of the machine's can't be used"
    UNSUPPORTED = "it can't do that at all"
    WRONG_REQUEST = "it does not understand what it was asked for"
    REFUSED_FILE = "it does not take or give the file"
    NOT_READY = "the guest takes no commands just now: VMware Tools do not run in it"
    GUEST_REFUSED = "the guest does not let this user log in"
    GUEST_FORBIDS = "the guest's user may not do that"
    GUEST_FAILED = "the guest can't do that"
    OTHER = "something else"

    @property
    def passes(self) -> bool:
        """Whether the same may succeed in a moment: nothing was done, and nothing stays so by itself."""
        return self in (Fault.UNREACHABLE, Fault.SESSION_OVER, Fault.BUSY, Fault.NOT_READY)


class VsphereFailed(TemporaryFailure):
    """The server did not do what it was told, or could not be told."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


TABLE = {
    # sessions
    "vim.fault.NotAuthenticated": Fault.SESSION_OVER,
    "vim.fault.InvalidLogin": Fault.LOGIN_REFUSED,
    "vim.fault.InvalidLocale": Fault.WRONG_REQUEST,
    "vim.fault.NoPermission": Fault.FORBIDDEN,
    "vim.fault.RestrictedVersion": Fault.FORBIDDEN,
    "vim.fault.InvalidLicense": Fault.FORBIDDEN,
    "vim.fault.LicenseAssignmentFailed": Fault.FORBIDDEN,
    "vmodl.fault.SecurityError": Fault.FORBIDDEN,
    # the server itself
    "vmodl.fault.HostCommunication": Fault.UNREACHABLE,
    "vim.fault.HostConnectFault": Fault.UNREACHABLE,
    "vim.fault.Timedout": Fault.UNREACHABLE,
    "vmodl.fault.ManagedObjectNotFound": Fault.GONE,
    "vmodl.fault.NotSupported": Fault.UNSUPPORTED,
    "vmodl.fault.NotImplemented": Fault.UNSUPPORTED,
    "vmodl.fault.MethodNotFound": Fault.UNSUPPORTED,
    "vmodl.fault.InvalidRequest": Fault.WRONG_REQUEST,
    "vmodl.fault.InvalidArgument": Fault.WRONG_REQUEST,
    "vmodl.fault.UnexpectedFault": Fault.OTHER,
    "vmodl.fault.SystemError": Fault.OTHER,
    "vmodl.fault.RequestCanceled": Fault.OTHER,
    "vmodl.query.InvalidProperty": Fault.WRONG_REQUEST,
    "vmodl.query.InvalidCollectorVersion": Fault.WRONG_REQUEST,
    # inventory
    "vim.fault.NotFound": Fault.GONE,
    "vim.fault.AlreadyExists": Fault.EXISTS,
    "vim.fault.DuplicateName": Fault.EXISTS,
    "vim.fault.InvalidName": Fault.WRONG_REQUEST,
    "vim.fault.InvalidFolder": Fault.WRONG_REQUEST,
    "vim.fault.InvalidDatastore": Fault.UNUSABLE_FILE,
    "vim.fault.InvalidDatastorePath": Fault.UNUSABLE_FILE,
    "vim.fault.OutOfBounds": Fault.NO_RESOURCES,
    "vim.fault.MigrationFault": Fault.OTHER,
    "vim.fault.CustomizationFault": Fault.OTHER,
    # machines
    "vim.fault.TaskInProgress": Fault.BUSY,
    "vim.fault.ConcurrentAccess": Fault.BUSY,
    "vim.fault.InvalidState": Fault.WRONG_STATE,
    "vim.fault.InvalidPowerState": Fault.WRONG_STATE,
    "vim.fault.InsufficientResourcesFault": Fault.NO_RESOURCES,
    "vim.fault.VmConfigFault": Fault.OTHER,
    "vim.fault.VmToolsUpgradeFault": Fault.OTHER,
    "vim.fault.VAppConfigFault": Fault.WRONG_STATE,
    "vim.fault.SnapshotFault": Fault.OTHER,
    "vim.fault.FileFault": Fault.UNUSABLE_FILE,
    "vim.fault.FileNotFound": Fault.NO_FILE,
    "vim.fault.FileAlreadyExists": Fault.EXISTS,
    "vim.fault.FileLocked": Fault.BUSY,
    "vim.fault.NoDiskSpace": Fault.NO_SPACE,
    "vim.fault.FilterInUse": Fault.BUSY,
    # guests
    "vim.fault.GuestOperationsFault": Fault.GUEST_FAILED,
    "vim.fault.GuestOperationsUnavailable": Fault.NOT_READY,
    "vim.fault.ToolsUnavailable": Fault.NOT_READY,
    "vim.fault.InvalidGuestLogin": Fault.GUEST_REFUSED,
    "vim.fault.GuestPermissionDenied": Fault.GUEST_FORBIDS,
    "vim.fault.GuestAuthenticationChallenge": Fault.GUEST_REFUSED,
    "vim.fault.GuestMultipleMappings": Fault.GUEST_FAILED,
    "vim.fault.GuestProcessNotFound": Fault.GUEST_FAILED,
    "vim.fault.OperationDisabledByGuest": Fault.GUEST_FAILED,
    "vim.fault.OperationNotSupportedByGuest": Fault.GUEST_FAILED,
    "vim.fault.TooManyGuestLogons": Fault.NOT_READY,
    "vim.fault.GuestComponentsOutOfDate": Fault.GUEST_FAILED,
    "vim.fault.VimFault": Fault.OTHER,
    "vmodl.MethodFault": Fault.OTHER,
    "vmodl.RuntimeFault": Fault.OTHER,
}
"""By the name that pyvmomi has for it."""

TRANSPORT = (OSError, HTTPException, ExpatError)
"""What pyvmomi lets out when there is no answer, or none that makes sense."""


def fault_of(error: BaseException) -> Fault:
    """What a foreign error means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault.NOT_TRUSTED
    if isinstance(error, TRANSPORT):
        return Fault.UNREACHABLE
    for kind in type(error).__mro__:
        if found := TABLE.get(kind.__name__):
            return found
    return Fault.OTHER


def translated(error: BaseException, what: str) -> VsphereFailed:
    """The error as one of ours; `what` was tried, as the beginning of a sentence."""
    meant = fault_of(error)
    return VsphereFailed(f"{what} failed: {meant.value} ({said(error)})", meant)


def said(error: BaseException) -> str:
    """What a foreign error says of itself, on one line; no part of a request is in it, and so no secret."""
    if not isinstance(error, vmodl.MethodFault):
        return one_line(f"{type(error).__name__}: {error}")[:_MESSAGE_LETTERS]
    words = [type(error).__name__.rpartition(".")[2], str(getattr(error, "msg", None) or "")]
    words += [str(one.message) for one in getattr(error, "faultMessage", None) or () if one.message]
    return one_line(": ".join(dict.fromkeys(word for word in words if word)))[:_MESSAGE_LETTERS]
