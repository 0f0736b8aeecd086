"""What a machine consists of: little hardware, and no road to the host.

Source: what VMware Workstation writes into .vmx files itself; VMware's Security Hardening Guide for the `isolation`
settings, of which `hgfsServerSet` must stay: files could not be copied without it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from vmwrapper.hypervisor.interface import MachineSpec
from vmwrapper.hypervisor.vmware.vmrun.image import BaseImage
from vmwrapper.hypervisor.vmware.vmrun.place import Place

ROOT_DISK, SCRATCH_DISK = "root.vmdk", "scratch.vmdk"
SCRATCH_UUID = "6000c295766d777261707065722d7363"
"""The serial number of a scratch disk, since VMware's have no other kind; launcher.sh knows it, too."""
_SCRATCH_PLACE = "scsi0:1"

_ALWAYS = {
    "config.version": "8",
    "pciBridge0.present": "TRUE",
    "pciBridge4.present": "TRUE",
    "pciBridge4.virtualDev": "pcieRootPort",
    "pciBridge4.functions": "8",
    "hpet0.present": "TRUE",
    "rtc.diffFromUTC": "0",
    "disk.EnableUUID": "TRUE",
    "ethernet0.present": "FALSE",
    "sound.present": "FALSE",
    "usb.present": "FALSE",
    "floppy0.present": "FALSE",
    "mks.enable3d": "FALSE",
    "RemoteDisplay.vnc.enabled": "FALSE",
    "vmci0.unrestricted": "FALSE",
    "sharedFolder.maxNum": "0",
    "isolation.tools.hgfs.disable": "TRUE",
    "isolation.tools.dnd.disable": "TRUE",
    "isolation.tools.copy.disable": "TRUE",
    "isolation.tools.paste.disable": "TRUE",
    "isolation.device.connectable.disable": "TRUE",
    "isolation.device.edit.disable": "TRUE",
    "tools.setInfo.sizeLimit": "1048576",
    "tools.upgrade.policy": "manual",
    "tools.syncTime": "FALSE",
    # no question may wait for somebody
    "msg.autoAnswer": "TRUE",
    "uuid.action": "keep",
    "answer.msg.serial.file.open": "Append",
    "powerType.powerOff": "hard",
    "powerType.powerOn": "hard",
    "powerType.suspend": "hard",
    "powerType.reset": "hard",
    # a snapshot is whole when it is said to be there, and a running guest's memory is no file
    "mainMem.useNamedFile": "FALSE",
    "mainMem.partialLazySave": "FALSE",
    "mainMem.partialLazyRestore": "FALSE",
    # bounds on what a guest can make grow
    "log.rotateSize": "1000000",
    "log.keepOld": "2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A machine's."""

    spec: MachineSpec
    image: BaseImage

    def values(self, place: Place) -> Mapping[str, str]:
        """Of its .vmx file."""
        return {
            "displayName": place.display_name,
            "annotation": str(self.spec.identity),
            **self._values(),
            "serial0.present": "TRUE",
            "serial0.fileType": "file",
            "serial0.fileName": place.console.name,
            "serial0.tryNoRxLoss": "FALSE",
        }

    def _values(self) -> Mapping[str, str]:
        image, spec = self.image, self.spec
        values = {
            **_ALWAYS,
            "virtualHW.version": str(image.hardware_version),
            "guestOS": image.guest_os,
            "firmware": "efi" if image.efi else "bios",
            "memsize": str(-(-spec.memory_mib // 4) * 4),  # as VMware wants it
            "numvcpus": str(spec.cpus),
            "cpuid.coresPerSocket": str(spec.cpus),
            f"{image.place.partition(':')[0]}.present": "TRUE",
            f"{image.place}.present": "TRUE",
            f"{image.place}.fileName": ROOT_DISK,
        }
        if image.controller or spec.scratch_mib:
            values |= {"scsi0.present": "TRUE", "scsi0.virtualDev": image.controller or "lsilogic"}
        if spec.scratch_mib:
            values |= {f"{_SCRATCH_PLACE}.present": "TRUE", f"{_SCRATCH_PLACE}.fileName": SCRATCH_DISK}
        return values

    def digest(self) -> str:
        """Another one for a machine that a guest's memory does not fit."""
        facts = [self._values(), self.spec.scratch_mib, self.image.sectors]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
