"""Whether VirtualBox can be used, as programs in its place say it; and what is remembered of that."""

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import ProcessFailed
from vmwrapper.hypervisor.virtualbox import backend, trial
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.virtualbox.trial import Verdict, _help, verdict
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage

RUNNING = "00:00:00.425808 Changing the VM state from 'POWERING_ON' to 'RUNNING'"
RUNS = f'echo "{RUNNING}" >"$machine/Logs/VBox.log"; exec sleep 1000'
WORKS = Verdict(works=True, is_interpreted=False, reasons=())


def refuses(code: str) -> str:
    return f"echo 'VirtualBoxVM: error: it does not work ({code})' >&2; exit 1"


@dataclass
class Programs:
    """In the place of VirtualBox's; each start of a machine is noted."""

    folder: Path
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cache = self.folder / "cache"
        self._write("VBoxManage", self._manage())

    def _manage(self, before: str = "") -> str:
        return f"""\
[ "$1" = --version ] && echo "WARNING: no driver" && echo 7.2.22_Debianr12345 && exit
{before}
echo "$*" >>calls
case "$1" in
createvm) rm -f interpreted; mkdir -p "$5/$3/Logs"; echo "$5/$3" >machine ;;
modifyvm) case "$*" in *interpreter*) touch interpreted ;; esac ;;
esac"""

    def _write(self, name: str, script: str) -> None:
        program = self.folder / name
        program.write_text(f'#!/bin/sh\ncd "{self.folder}"\n{script}\n')
        program.chmod(0o755)

    def manage(self, before: str) -> None:
        self._write("VBoxManage", self._manage(before))

    def headless(self, natively: str, interpreted: str = "exit 1") -> None:
        script = f"machine=$(cat machine)\necho start >>calls\n[ -e interpreted ] || {{ {natively}; }}\n{interpreted}"
        self._write("VBoxHeadless", script)

    @property
    def starts(self) -> int:
        return self.calls("start")

    def calls(self, verb: str) -> int:
        lines = (self.folder / "calls").read_text().splitlines()
        return sum(line.split()[0] == verb for line in lines)

    async def verdict(self) -> Verdict:
        program = self.folder / "VBoxManage"
        headless = [str(self.folder / "VBoxHeadless")]
        return await verdict(VBoxManage(program), headless, program, RunningClock(), cache=self.cache)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


async def test_a_machine_that_starts(programs: Programs) -> None:
    programs.headless(RUNS)
    assert await programs.verdict() == WORKS
    assert programs.starts == 1
    assert programs.calls("createvm") == programs.calls("unregistervm") == 1
    assert psutil.Process().children(recursive=True) == []
    assert not Path((programs.folder / "machine").read_text().strip()).parent.exists()


async def test_only_interpreted(programs: Programs) -> None:
    programs.headless(refuses("VERR_SUP_DRIVERLESS"), RUNS)
    found = await programs.verdict()
    assert (found.works, found.is_interpreted) == (True, True)
    assert "its kernel module is not loaded" in found.reasons[0]
    assert programs.calls("unregistervm") == 2


async def test_not_at_all(programs: Programs) -> None:
    programs.headless(refuses("VERR_VMX_IN_VMX_ROOT_MODE"))
    found = await programs.verdict()
    assert not found.works
    assert found.reasons[0].startswith("VirtualBox runs no machine here: another hypervisor, such as KVM, uses")


async def test_a_machine_that_stalls(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "START_LIMIT_S", 0.5)
    programs.headless("exec sleep 1000", "exec sleep 1000")
    found = await programs.verdict()
    assert found == Verdict(
        works=False,
        is_interpreted=False,
        reasons=("VirtualBox runs no machine here: a machine did not start within 0.5 s",),
    )
    assert psutil.Process().children(recursive=True) == []


async def test_a_machine_that_ends_without_a_word(programs: Programs) -> None:
    programs.headless("exit 0", "exit 0")
    assert (await programs.verdict()).reasons == ("VirtualBox runs no machine here: it said nothing",)


async def test_no_machine_can_be_made(programs: Programs) -> None:
    programs.headless(RUNS)
    programs.manage("echo 'VBoxManage: error: Out of bananas' >&2; exit 1")
    with pytest.raises(ProcessFailed, match="Out of bananas"):
        await programs.verdict()
    assert not programs.cache.exists()


async def test_cancelled(programs: Programs) -> None:
    programs.headless("touch started; exec sleep 1000")
    task = asyncio.create_task(programs.verdict())
    while not (programs.folder / "started").exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert programs.calls("unregistervm") == 1
    assert psutil.Process().children(recursive=True) == []


@pytest.mark.parametrize(
    ("complaint", "sentence"),
    [
        ("(VERR_SUP_DRIVERLESS)", "its kernel module is not loaded"),
        ("Kernel driver not installed (rc=-1908) VERR_VM_DRIVER_NOT_INSTALLED", "its kernel module is not loaded"),
        ("VERR_VM_DRIVER_NOT_ACCESSIBLE", "its kernel module is not loaded"),
        ("VERR_VM_DRIVER_VERSION_MISMATCH", "its kernel module is of another version"),
        ("VT-x is being used by another hypervisor (VERR_VMX_IN_VMX_ROOT_MODE).", "another hypervisor, such as KVM"),
        ("VERR_SVM_IN_USE", "another hypervisor, such as KVM"),
        ("VT-x is disabled in the BIOS for all CPU modes (VERR_VMX_MSR_ALL_VMX_DISABLED)", "is switched off"),
        ("VERR_VMX_MSR_VMX_DISABLED", "is switched off"),
        ("AMD-V is disabled in the BIOS (VERR_SVM_DISABLED).", "is switched off"),
        ("VT-x is not available (VERR_VMX_NO_VMX)", "has no hardware virtualization"),
        ("AMD-V is not available (VERR_SVM_NO_SVM)", "has no hardware virtualization"),
        ("VERR_UNSUPPORTED_CPU", "has no hardware virtualization"),
        ("VERR_NEM_NOT_AVAILABLE", "Hyper-V does not share"),
        ("VERR_NEM_VM_CREATE_FAILED", "Hyper-V does not share"),
        ("something (VERR_NO_MEMORY) else", "it says VERR_NO_MEMORY"),
        ("a machine did not start within 3 s", "a machine did not start within 3 s"),
    ],
)
def test_help(complaint: str, sentence: str) -> None:
    assert sentence in _help(complaint)


@pytest.mark.parametrize(
    ("natively", "interpreted"),
    [(RUNS, ""), (refuses("VERR_SUP_DRIVERLESS"), RUNS), (refuses("VERR_VMX_NO_VMX"), RUNS)],
    ids=["works", "without driver", "without ability"],
)
async def test_a_lasting_verdict_is_remembered(programs: Programs, natively: str, interpreted: str) -> None:
    programs.headless(natively, interpreted)
    first = await programs.verdict()
    before = programs.starts
    assert await programs.verdict() == first
    assert programs.starts == before


@pytest.mark.parametrize(
    ("natively", "interpreted"),
    [
        (refuses("VERR_VMX_IN_VMX_ROOT_MODE"), RUNS),
        (refuses("VERR_VMX_IN_VMX_ROOT_MODE"), "exit 1"),
        (refuses("VERR_SUP_DRIVERLESS"), "exit 1"),
        ("exit 1", "exit 1"),
        ("exit 1", RUNS),
    ],
)
async def test_what_may_pass_is_not_remembered(programs: Programs, natively: str, interpreted: str) -> None:
    """As when the volunteer has done what we said."""
    programs.headless(natively, interpreted)
    assert await programs.verdict() != WORKS
    programs.headless(RUNS)
    assert await programs.verdict() == WORKS


async def test_a_verdict_is_asked_again_once_the_driver_is_there(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial, "_DRIVER", tmp_path / "vboxdrv")
    programs.headless(refuses("VERR_SUP_DRIVERLESS"), RUNS)
    assert (await programs.verdict()).is_interpreted
    programs.headless(RUNS)
    assert (await programs.verdict()).is_interpreted
    (tmp_path / "vboxdrv").touch()
    assert await programs.verdict() == WORKS


async def test_a_verdict_is_asked_again_of_another_virtualbox(programs: Programs) -> None:
    programs.headless(refuses("VERR_SUP_DRIVERLESS"), RUNS)
    assert (await programs.verdict()).is_interpreted
    programs.headless(RUNS)
    os.utime(programs.folder / "VBoxManage", (0, 0))
    assert await programs.verdict() == WORKS


async def test_a_verdict_is_asked_again_after_a_boot(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.headless(refuses("VERR_SUP_DRIVERLESS"), RUNS)
    await programs.verdict()
    programs.headless(RUNS)
    monkeypatch.setattr(trial, "boot_id", lambda: "another")
    assert await programs.verdict() == WORKS


@pytest.mark.parametrize("content", [b"", b"null", b"{}", b"[" * 9000, b"\xff", b'{"question": {}, "answer": [true]}'])
async def test_garbage_in_the_cache_is_replaced(programs: Programs, content: bytes) -> None:
    programs.headless(RUNS)
    programs.cache.mkdir()
    (programs.cache / "virtualbox.json").write_bytes(content)
    assert await programs.verdict() == WORKS
    assert await programs.verdict() == WORKS
    assert programs.starts == 1


class TestProbe:
    @pytest.fixture(autouse=True)
    def found(self, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", f"{programs.folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("VMWRAPPER_CACHE", str(programs.cache))

    async def test_usable(self, programs: Programs) -> None:
        programs.headless(RUNS)
        result = await VirtualBoxHypervisor().probe(RunningClock())
        assert (result.usable, result.accelerated, result.version, result.reasons) == (True, True, "7.2.22", ())

    async def test_not_accelerated(self, programs: Programs) -> None:
        programs.headless(refuses("VERR_SUP_DRIVERLESS"), RUNS)
        result = await VirtualBoxHypervisor().probe(RunningClock())
        assert (result.usable, result.accelerated) == (True, False)
        assert "/sbin/vboxconfig" in result.reasons[0]

    async def test_broken(self, programs: Programs) -> None:
        programs.manage("echo 'VBoxManage: error: Failed to initialize COM!' >&2; exit 1")
        result = await VirtualBoxHypervisor().probe(RunningClock())
        assert not result.usable
        assert "VirtualBox can't be tried out" in result.reasons[0]
        assert "Failed to initialize COM" in result.reasons[0]

    @pytest.mark.parametrize(
        "broken", ["exec sleep 1000", "echo 'VBoxManage: error: Failed to create the VirtualBox object!' >&2; exit 1"]
    )
    async def test_no_answer(self, programs: Programs, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
        monkeypatch.setattr(backend, "_TRIAL_LIMIT_S", 1)
        monkeypatch.setattr(trial, "_END_LIMIT_S", 0.5)
        programs.manage(broken)
        began_s = time.monotonic()
        result = await VirtualBoxHypervisor().probe(RunningClock())
        assert not result.usable
        assert result.reasons == ("VirtualBox gave no answer within 1 s: restart this computer",)
        assert time.monotonic() - began_s < 4
        assert psutil.Process().children(recursive=True) == []

    def test_the_limits_are_a_probes(self) -> None:
        assert backend._TRIAL_LIMIT_S + trial._END_LIMIT_S < 10

    @pytest.mark.parametrize(("version", "told"), [("6.1.50r161033", "6.1.50"), ("", "unknown"), ("x.y.z", "unknown")])
    async def test_too_old(self, programs: Programs, version: str, told: str) -> None:
        (programs.folder / "VBoxManage").write_text(f"#!/bin/sh\necho '{version}'\n")
        result = await VirtualBoxHypervisor().probe(RunningClock())
        assert (result.usable, result.version) == (False, told)
        assert "too old: 7.0 or newer is needed" in result.reasons[0]
