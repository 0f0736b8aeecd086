"""Which of VMware's two ways is taken, and what that costs others."""

import subprocess
import sys

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.hypervisor.vmware.backend import VmwareHypervisor
from vmwrapper.hypervisor.vmware.vsphere.settings import FILE_VARIABLE

LISTS = """\
import sys
from vmwrapper.hypervisor.registry import all_hypervisors
for hypervisor in all_hypervisors():
    hypervisor.abilities, hypervisor.image_suffixes
print(sorted({"pyVmomi", "aiohttp"} & sys.modules.keys()))
"""


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv(FILE_VARIABLE, raising=False)


def test_without_a_server_it_is_vmrun(nowhere: None) -> None:
    hypervisor = VmwareHypervisor()
    assert ".vmx" in hypervisor.image_suffixes


async def test_with_one_it_is_that_even_where_its_settings_are_wrong(
    nowhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, "/no/such/vsphere.toml")
    hypervisor = VmwareHypervisor()
    assert hypervisor.image_suffixes == (".vsphere",)
    assert hypervisor.abilities.needs_login
    result = await hypervisor.probe(RunningClock())
    assert not result.usable
    assert "/no/such/vsphere.toml" in result.reasons[0]


def test_whoever_does_not_use_a_server_does_not_pay_for_pyvmomi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE_VARIABLE, "/no/such/vsphere.toml")
    listed = subprocess.run([sys.executable, "-c", LISTS], capture_output=True, text=True, check=True)
    assert listed.stdout == "[]\n"
