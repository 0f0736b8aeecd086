"""Which accelerator really runs a guest: found out by running one."""

import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from vmwrapper import process
from vmwrapper.errors import ProcessFailed, TemporaryFailure
from vmwrapper.hypervisor.host import boot_id
from vmwrapper.hypervisor.qemu import firmware
from vmwrapper.hypervisor.remembered import identity, keep, recall

PROBE_LIMIT_S = 2.0
_KVM_DEVICE = Path("/dev/kvm")


class Accelerator(StrEnum):
    """Who executes a guest's instructions; the values are QEMU's names for `-accel`."""

    KVM = "kvm"
    HVF = "hvf"
    WHPX = "whpx"
    TCG = "tcg"

    @property
    def cpu_model(self) -> str:
        """The `-cpu` that guests get, and that is probed with it: a verdict says nothing about other models.

        Under TCG the models with AVX make a guest slower: see docs/adr/002. Nehalem is x86-64-v2, which today's Linux
        distributions ask for.
        """
        return "Nehalem" if self is Accelerator.TCG else "host"


_HARDWARE = {
    "Linux": (Accelerator.KVM,),
    "Darwin": (Accelerator.HVF,),
    "Windows": (Accelerator.WHPX,),
}

_NAMES = {
    Accelerator.KVM: "/dev/kvm",
    Accelerator.HVF: "Apple's Hypervisor framework",
    Accelerator.WHPX: "the Windows Hypervisor Platform",
    Accelerator.TCG: "emulation",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an accelerator runs guests here; `reason` is a sentence for the volunteer."""

    accelerator: Accelerator
    works: bool
    reason: str


class Run(Protocol):
    """Runs a program to its end, as `vmwrapper.process.complete` does."""

    async def __call__(
        self, argv: Sequence[str], *, limit_s: float, directory: Path | None = None
    ) -> process.Completed: ...


@dataclass(frozen=True, slots=True)
class Host:
    """What a probe takes from the host.

    `system` is spelled as platform.system() does. `boot_id` is None where the host does not tell it: then no verdict is
    remembered. `scratch` is a folder for temporary files, None for the platform's own.
    """

    system: str = field(default_factory=platform.system)
    boot_id: str | None = field(default_factory=boot_id)
    kvm_device: Path = _KVM_DEVICE
    scratch: Path | None = None
    run: Run = process.complete


async def best(binary: Path, *, cache: Path | None, host: Host | None = None) -> tuple[Accelerator, list[Verdict]]:
    """Choose the first hardware accelerator of this host that works, else TCG; and tell what was found out on the way.

    Raises what `probe` raises.
    """
    host = host or Host()
    verdicts: list[Verdict] = []
    for accelerator in _HARDWARE.get(host.system, ()):
        verdicts.append(await probe(binary, accelerator, cache=cache, host=host))
        if verdicts[-1].works:
            return accelerator, verdicts
    return Accelerator.TCG, verdicts


async def probe(binary: Path, accelerator: Accelerator, *, cache: Path | None, host: Host | None = None) -> Verdict:
    """Find out within PROBE_LIMIT_S whether the QEMU at `binary`, an absolute path, runs a guest with an accelerator.

    What QEMU itself showed is remembered in the folder `cache` until the host boots again or the binary changes. The
    folder need not exist or be writable. Raises ProcessFailed where QEMU can't be started, and TemporaryFailure where
    the temporary folder takes no file. A cancellation leaves neither process nor temporary file.
    """
    host = host or Host()
    if accelerator is Accelerator.KVM and (obstacle := _obstacle(host.kvm_device)):
        return Verdict(accelerator, works=False, reason=obstacle)
    if cache is None or host.boot_id is None:
        return await _ask(binary, accelerator, host)
    file = cache / f"accelerator-{accelerator}.json"
    question: dict[str, object] = {"boot_id": host.boot_id, "accelerator": accelerator, "cpu": accelerator.cpu_model}
    with suppress(OSError):  # what can't be found can't be started either, which says so better
        question |= identity(binary)
    match recall(file, question):
        case {"works": bool(works), "reason": str(reason)}:
            return Verdict(accelerator, works=works, reason=reason)
    verdict = await _ask(binary, accelerator, host)
    keep(file, question, {"works": verdict.works, "reason": verdict.reason})
    return verdict


def _obstacle(device: Path) -> str | None:
    try:
        os.close(os.open(device, os.O_RDWR))
    except FileNotFoundError:
        return f"{device} is missing: no hardware virtualization, or it is switched off in the firmware"
    except PermissionError:
        return f"{device} can't be opened by this user: ask the administrator to add the user to the group kvm"
    except OSError as error:
        return f"{device} can't be opened: {error.strerror}"
    return None


async def _ask(binary: Path, accelerator: Accelerator, host: Host) -> Verdict:
    with _firmware_file(host.scratch) as image:
        try:
            # An aborting QEMU may dump its core into its directory; there it is deleted with the image.
            ended = await host.run(_command(binary, accelerator, image), limit_s=PROBE_LIMIT_S, directory=image.parent)
        except ProcessFailed as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            reason = f"{_NAMES[accelerator]} is there, but a guest made no progress within {PROBE_LIMIT_S:g} s"
            return Verdict(accelerator, works=False, reason=reason)
    if ended.status == firmware.DONE_STATUS:
        return Verdict(accelerator, works=True, reason=f"{_NAMES[accelerator]} ran a test guest")
    reason = f"{_NAMES[accelerator]} runs no guests: QEMU ended with status {ended.status}, {_last_line(ended.stderr)}"
    return Verdict(accelerator, works=False, reason=reason)


@contextmanager
def _firmware_file(scratch: Path | None) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = tempfile.TemporaryDirectory(prefix="vmwrapper-", dir=scratch, ignore_cleanup_errors=True)
            image = Path(stack.enter_context(folder), "firmware.bin")
            image.write_bytes(firmware.image())
        except OSError as error:
            raise TemporaryFailure(f"can't write a test firmware into the temporary folder: {error}") from error
        yield image


def _command(binary: Path, accelerator: Accelerator, image: Path) -> list[str]:
    return [
        str(binary),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-machine", "q35"),
        *("-accel", accelerator),
        *("-cpu", accelerator.cpu_model),
        *("-m", "16"),
        *("-display", "none"),
        *("-device", firmware.DEBUG_EXIT_DEVICE),
        *("-bios", str(image)),
    ]


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
