"""The host, as all hypervisors see it."""

import hashlib
import platform
import shutil
from pathlib import Path

import psutil

from vmwrapper.errors import HostDiskFailed, HostMemoryShort, JobError
from vmwrapper.hypervisor.interface import MIB

_LEAST_FREE_BYTES = 8 * MIB


def boot_id() -> str | None:
    """What is another one after each start of the host; None where it does not tell."""
    try:
        if platform.system() == "Linux":
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return str(int(psutil.boot_time()))
    except OSError:
        return None


def host_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The host's processor with what it can, on one line: what guests see of it."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    abilities = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return f"{facts.get('model name', 'unknown')} ({abilities})"


def check_free_memory(memory_mib: int) -> None:
    """Raise JobError where the host can't have such a machine, HostMemoryShort where it can't just now."""
    memory = psutil.virtual_memory()
    if memory_mib > memory.total // MIB:
        raise JobError(f"the job wants {memory_mib} MiB of memory; this computer has {memory.total // MIB} MiB")
    if memory_mib > memory.available // MIB:
        raise HostMemoryShort(
            f"the job wants {memory_mib} MiB of memory, and just now {memory.available // MIB} MiB are free"
        )


def check_free_disk(folder: Path) -> None:
    """Raise HostDiskFailed where hypervisors could not even write their logs, and would say nothing; OSError."""
    if shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
        raise HostDiskFailed(f"less than {_LEAST_FREE_BYTES // MIB} MiB are free for the machine's files")


def size_if_there(file: Path) -> int:
    """Of a file that a hypervisor may just have merged into another; 0 then."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
