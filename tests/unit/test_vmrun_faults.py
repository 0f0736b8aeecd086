"""What vmrun's complaints mean: as users have reported them, or VIX's error texts have them; none was met here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.vmware.vmrun import faults
from vmwrapper.hypervisor.vmware.vmrun.faults import TABLE, Fault, complaint, fault

from .fuzzing import fuzzed

VMX = "/slots/0/.vmwrapper/vmwrapper-0123456789abcdef/machine.vmx"
SAID = {
    "Error: Invalid user name or password for the guest OS": Fault.LOGIN_REFUSED,
    "Error: You must be logged in to the guest": Fault.LOGIN_REFUSED,
    f"Error: The VMware Tools are not running in the virtual machine: {VMX}": Fault.NO_TOOLS,
    "Error: The guest operations agent could not be contacted": Fault.NO_TOOLS,
    "Error: Guest program exited with non-zero exit code: 1": Fault.GUEST_FAILED,
    "Error: Program was not started": Fault.GUEST_FAILED,
    "Error: Insufficient disk space": Fault.NO_SPACE,
    "Error: There is not enough space in the file system for the operation": Fault.NO_SPACE,
    "Error: Not enough physical memory is available to power on this virtual machine": Fault.NO_MEMORY,
    "Unable to connect to host.\nError: The specified version was not found": Fault.NO_SUCH_PRODUCT,
    "Error: Could not open /dev/vmmon: No such file or directory": Fault.NO_MODULES,
    "Error: The product's license is invalid or has expired": Fault.NO_LICENSE,
    "Error: This virtual machine requires AMD-V or Intel VT-x": Fault.NO_VIRTUALIZATION,
    "Error: VMware Player and Device/Credential Guard are not compatible": Fault.NO_VIRTUALIZATION,
    "Error: The operation is not supported": Fault.UNSUPPORTED,
    "Error: Unrecognized command: pause": Fault.UNSUPPORTED,
    f"Error: The virtual machine is not powered on: {VMX}": Fault.NOT_RUNNING,
    "Error: The virtual machine is paused": Fault.PAUSED,
    "Error: The virtual machine should not be powered on. It is already running.": Fault.RUNNING,
    "Error: A snapshot with the name already exists": Fault.SNAPSHOT_EXISTS,
    "Error: The snapshot does not exist": Fault.NO_SNAPSHOT,
    "Error: Invalid snapshot name 'vmwrapper-1'": Fault.NO_SNAPSHOT,
    "Error: The object is busy": Fault.BUSY,
    "Error: Another operation is already in progress": Fault.BUSY,
    "Error: The operation was canceled": Fault.BUSY,
    "Error: The file is already in use": Fault.IN_USE,
    "Error: Failed to lock the file": Fault.IN_USE,
    f"Error: Cannot open VM: {VMX}, The virtual machine cannot be found": Fault.NO_MACHINE,
    "Error: The file specified is not a valid virtual machine": Fault.NO_MACHINE,
    "Error: The content ID of the parent virtual disk does not match": Fault.NO_MACHINE,
    "Error: A file was not found": Fault.FILE_MISSING,
    "Error: The directory does not exist": Fault.FILE_MISSING,
    "Error: Insufficient permissions in the host operating system": Fault.FORBIDDEN,
    "Error: Unknown error": Fault.OTHER,
}


@pytest.mark.parametrize("said", SAID)
def test_each_text(said: str) -> None:
    found = complaint(f"{said}\r\n".replace("\r\n", "\n"))
    assert found is not None
    assert fault(found) is SAID[said]


def test_each_row_of_the_table_and_each_fault_is_met() -> None:
    assert {meant for _, meant in TABLE} | {Fault.OTHER} == set(SAID.values()) == set(Fault)


def test_only_what_passes_by_itself_is_tried_again() -> None:
    assert [one for one in Fault if one.passes] == [Fault.BUSY]


@pytest.mark.parametrize(
    "name",
    ["/slots/VMware Tools/is busy.vmx", "/x/The operation is not supported/already in use/m.vmx", r"C:\is paused"],
)
def test_what_is_in_a_name_means_nothing(name: str) -> None:
    assert fault(f"The virtual machine is not powered on: {name}") is Fault.NOT_RUNNING
    assert fault(f"Something new about '{name}'") is Fault.OTHER


@pytest.mark.parametrize("said", ["", "Total running VMs: 0\n", "The file exists.\n", "Warning: no Error: at all\n"])
def test_what_is_no_complaint(said: str) -> None:
    assert complaint(said) is None


def test_an_error_may_come_after_other_lines() -> None:
    assert complaint("2026-11-22 log line\nError: A file was not found\nmore\n") == "A file was not found"


@fuzzed
@given(said=st.text())
def test_whatever_it_says(said: str) -> None:
    assert isinstance(fault(said), faults.Fault)
