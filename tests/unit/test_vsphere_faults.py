"""One table says what vSphere's faults mean; it has all that the methods which are called can raise."""

import ast
import ssl
from collections.abc import Iterator
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import GetVmodlType

from vmwrapper.hypervisor.vmware import vsphere
from vmwrapper.hypervisor.vmware.vsphere.faults import TABLE, Fault, fault_of, said, translated

SOURCES = Path(vsphere.__path__[0])
CALLED = (
    vim.ServiceInstance,
    vim.SessionManager,
    vim.SearchIndex,
    vim.Folder,
    vim.VirtualMachine,
    vim.vm.Snapshot,
    vim.PerformanceManager,
    vim.FileManager,
    vim.view.ViewManager,
    vim.view.ContainerView,
    vim.vm.guest.FileManager,
    vim.vm.guest.ProcessManager,
    vmodl.query.PropertyCollector,
)
"""What all methods that we call are of."""


def names_in_sources() -> set[str]:
    """All attributes, and all texts, of the backend: among them the methods that it calls."""
    found = set()
    for source in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def methods() -> Iterator[tuple[str, Any]]:
    names = names_in_sources()
    for kind in CALLED:
        for each in kind.__mro__:
            for name, info in getattr(each, "_methodInfo", {}).items():
                if name in names:
                    yield f"{kind.__name__}.{name}", info


def test_the_table_has_all_faults_of_the_methods_that_are_called() -> None:
    called = dict(methods())
    assert {"vim.VirtualMachine.Clone", "vim.vm.Snapshot.Revert", "vim.SessionManager.Login"} <= called.keys()
    missing = {f"{name}: {fault}" for name, info in called.items() for fault in info.faults if fault not in TABLE}
    assert missing == set()


def test_the_table_names_faults_that_there_are() -> None:
    for name in TABLE:
        assert issubclass(GetVmodlType(name), vmodl.MethodFault)


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (vim.fault.InvalidLogin(), Fault.LOGIN_REFUSED),
        (vim.fault.InvalidGuestLogin(), Fault.GUEST_REFUSED),
        (vim.fault.NotAuthenticated(), Fault.SESSION_OVER),
        (vim.fault.NoDiskSpace(), Fault.NO_SPACE),
        (vim.fault.CannotAccessFile(), Fault.UNUSABLE_FILE),  # by its kind
        (vim.fault.InsufficientMemoryResourcesFault(), Fault.NO_RESOURCES),
        (vim.fault.ToolsUnavailable(), Fault.NOT_READY),
        (vmodl.fault.ManagedObjectNotFound(), Fault.GONE),
        (vmodl.MethodFault(), Fault.OTHER),
        (ConnectionResetError(), Fault.UNREACHABLE),
        (TimeoutError(), Fault.UNREACHABLE),
        (RemoteDisconnected(), Fault.UNREACHABLE),
        (ssl.SSLEOFError(), Fault.UNREACHABLE),
        (ssl.SSLCertVerificationError(), Fault.NOT_TRUSTED),
    ],
)
def test_what_faults_mean(error: Exception, meant: Fault) -> None:
    assert fault_of(error) is meant
    assert meant.value in str(translated(error, "it"))


def test_what_a_fault_says_is_harmless_and_short() -> None:
    hostile = vim.fault.NotFound(msg="\x1b[31mred\nsecond line" + "x" * 10_000)
    assert said(hostile).isprintable()
    assert len(said(hostile)) <= 500
    assert said(vim.fault.InvalidState(msg="it is off")) == "InvalidState: it is off"


def test_a_licence_is_named_as_what_forbids() -> None:
    assert fault_of(vim.fault.RestrictedVersion(msg="Current license or ESXi version prohibits")) is Fault.FORBIDDEN
