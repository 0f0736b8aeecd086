"""What the simulator really does of vSphere, over SOAP and TLS: vmwrapper's tests take that for granted."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyVim.connect import SmartConnect, SmartStubAdapter
from pyVmomi import vim

from .vcsim import Simulator

pytestmark = pytest.mark.vcsim


@contextmanager
def logged_in(server: Simulator, *, password: str | None = None) -> Iterator[Any]:
    trusted = ssl.create_default_context(cafile=str(server.ca_file))
    stub = SmartStubAdapter(host=server.host, port=server.port, sslContext=trusted)  # SmartConnect leaks at a failure
    try:
        service = vim.ServiceInstance("ServiceInstance", stub)
        service.content.sessionManager.Login(server.user, password or server.password)
        yield service
    finally:
        stub.DropConnections()


@pytest.mark.parametrize("vsphere", ["vpx", "esx"], indirect=True)
def test_finds_the_inventory(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        content = service.RetrieveContent()
        assert content.about.apiType == {"vpx": "VirtualCenter", "esx": "HostAgent"}[vsphere.kind]
        found = [content.searchIndex.FindByInventoryPath(path) for path in vsphere.machines]
        assert [f"{vsphere.datacenter}/vm/{machine.name}" for machine in found] == vsphere.machines
        assert found[0].runtime.powerState == "poweredOff"
        store = content.searchIndex.FindByInventoryPath(f"{vsphere.datacenter}/datastore/{vsphere.datastore}")
        assert store.name == vsphere.datastore


def test_verifies_the_certificate(vsphere: Simulator) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        SmartConnect(host=vsphere.host, port=vsphere.port, user=vsphere.user, pwd=vsphere.password)


def test_refuses_a_wrong_password(vsphere: Simulator) -> None:
    with pytest.raises(vim.fault.InvalidLogin), logged_in(vsphere, password="wrong"):
        pass


def test_goes_away_and_forgets_sessions(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = service.content.searchIndex.FindByInventoryPath(vsphere.machines[0])
        with vsphere.away(), pytest.raises((ConnectionError, ssl.SSLError)):
            machine.PowerOn()
        with pytest.raises(vim.fault.NotAuthenticated):
            machine.PowerOn()
