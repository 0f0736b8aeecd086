"""Measures vmwrapper against bare QEMU on this machine: `make bench`.

What is compared is measured in turns, so that a noisy machine is noisy for both; a figure is the median of the rounds,
with the smallest and the largest.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vmwrapper.folders import image_folder
from vmwrapper.guest.bundle import extract, open_bundle

VMWRAPPER = Path(sys.executable).with_name("vmwrapper")
RUNNING = "Running the program"
START_ROUNDS = 9
IDLE_ROUNDS = 3
IDLE_S = 20.0


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, in its unit, and what was aimed at."""

    name: str
    unit: str
    values: Sequence[float]
    aim: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class IdleJob:
    """A job whose program sleeps, started by the program `vmwrapper`, as far as its running program."""

    def __init__(self, folder: Path) -> None:
        (folder / "idle.sh").write_text("#!/bin/sh\nexec sleep 3600\n")
        (folder / "job.xml").write_text(
            "<job_desc><task><vm>default</vm><innerjob>idle.sh</innerjob></task></job_desc>"
        )
        started_at = time.monotonic()
        # As on a volunteer's computer, where Python keeps what it compiled.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        argv = [VMWRAPPER, "run", folder / "job.xml"]
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment)
        assert self._process.stderr is not None
        if not any(RUNNING in line for line in self._process.stderr):
            raise RuntimeError("the job did not start")
        self.start_s = time.monotonic() - started_at
        self.wrapper = psutil.Process(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


class BareGuest:
    """The same guest in bare QEMU: a command line, and a socket for the agent. Knows nothing of vmwrapper's backend."""

    def __init__(self, folder: Path) -> None:
        bundle = open_bundle(image_folder() / "default.vmguest")
        self._command_line = bundle.command_line
        self._kernel, self._initramfs, self._disk = folder / "kernel", folder / "initramfs", folder / "disk"
        for path, section in ((self._kernel, bundle.kernel), (self._initramfs, bundle.initramfs)):
            with path.open("wb") as file:
                extract(bundle, section, file)

    def start_s(self, *, with_disk: bool) -> float:
        """From QEMU's start to a program that runs in the guest, on a disk of its own if that is asked."""
        started_at = time.monotonic()
        ours, theirs = socket.socketpair()
        argv = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,accel=tcg"),
            *("-cpu", "Nehalem", "-m", "256M", "-kernel", self._kernel, "-initrd", self._initramfs),
            *("-append", self._command_line, "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,fd={theirs.fileno()}"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        ]
        if with_disk:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self._disk, "1G"], check=True)
            argv += ["-drive", f"file={self._disk},format=qcow2,if=virtio"]
        with ours, theirs, subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as qemu:
            _ask(ours, "guest-sync", id=1)
            if with_disk:
                _run(ours, "mke2fs -F -m 0 -i 65536 /dev/vda >/dev/null && mount -t ext4 /dev/vda /tmp")
                _run(ours, "printf '#!/bin/sh\nexec sleep 60\n' >/tmp/idle.sh && chmod +x /tmp/idle.sh")
            _ask(ours, "guest-exec", path="/tmp/idle.sh" if with_disk else "sleep", arg=["60"])
            took_s = time.monotonic() - started_at
            qemu.kill()
        return took_s


def _ask(agent: socket.socket, command: str, **arguments: object) -> Any:
    agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    reply = b""
    while not reply.endswith(b"\n"):
        reply += agent.recv(4096)
    return json.loads(reply)["return"]


def _run(agent: socket.socket, script: str) -> None:
    pid = _ask(agent, "guest-exec", path="sh", arg=["-c", script])["pid"]
    while not (status := _ask(agent, "guest-exec-status", pid=pid))["exited"]:
        time.sleep(0.003)
    assert status["exitcode"] == 0, status


def measure_start(folder: Path) -> list[Figure]:
    guest = BareGuest(folder)
    bare, with_disk, wrapped = [], [], []
    for _ in rounds(START_ROUNDS, "start"):
        bare.append(guest.start_s(with_disk=False))
        with_disk.append(guest.start_s(with_disk=True))
        job = IdleJob(folder)
        wrapped.append(job.start_s)
        job.close()
    return [
        Figure("bare QEMU: start to running program", "s", bare),
        Figure("the same by hand, with disk and program", "s", with_disk),
        Figure("vmwrapper: start to running program", "s", wrapped, aim=2.5),
        Figure("vmwrapper over bare QEMU", "x", ratios(wrapped, bare), aim=1.15),
        Figure("vmwrapper over the same by hand", "x", ratios(wrapped, with_disk)),
    ]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def rounds(number: int, what: str) -> Iterable[int]:
    return track(range(number), what, console=Console(stderr=True), transient=True)


def measure_idle(folder: Path) -> list[Figure]:
    cpu_s_per_min, memory_mb = [], []
    with ExitStack() as stack:
        job = IdleJob(folder)
        stack.callback(job.close)
        time.sleep(5)  # until it looks once a second
        for _ in rounds(IDLE_ROUNDS, "idle"):
            before = job.wrapper.cpu_times()
            time.sleep(IDLE_S)
            after = job.wrapper.cpu_times()
            used_s = after.user - before.user + after.system - before.system
            cpu_s_per_min.append(used_s * 60 / IDLE_S)
            memory_mb.append(job.wrapper.memory_info().rss / 1e6)
    return [
        Figure("wrapper's CPU time while it follows an idle program", "s/min", cpu_s_per_min, aim=0.06),
        Figure("wrapper's resident memory", "MB", memory_mb, aim=40),
    ]


def show(figures: Sequence[Figure]) -> None:
    table = Table("figure", "median", "min", "max", "unit", "aim")
    for figure in figures:
        numbers = (figure.median, min(figure.values), max(figure.values))
        aim = f"<= {figure.aim:g}" if figure.aim is not None else ""
        table.add_row(figure.name, *(f"{number:.3g}" for number in numbers), figure.unit, aim)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    file = parser.parse_args().json
    figures = []
    for measure in (measure_start, measure_idle):
        with tempfile.TemporaryDirectory() as folder:
            figures += measure(Path(folder))
    show(figures)
    file.write_text(json.dumps([asdict(figure) | {"median": figure.median} for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
