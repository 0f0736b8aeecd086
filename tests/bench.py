"""Measures vmwrapper against bare QEMU on this machine: `make bench`.

What is compared is measured in turns, so that a noisy machine is noisy for both; a figure is the median of the rounds,
with the smallest and the largest.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

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
        self._process = subprocess.Popen([VMWRAPPER, "run", folder / "job.xml"], stderr=subprocess.PIPE, text=True)
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
        self._kernel, self._initramfs = folder / "kernel", folder / "initramfs"
        for path, section in ((self._kernel, bundle.kernel), (self._initramfs, bundle.initramfs)):
            with path.open("wb") as file:
                extract(bundle, section, file)

    def start_s(self) -> float:
        """From the start of QEMU's process to a program that runs in the guest."""
        started_at = time.monotonic()
        ours, theirs = socket.socketpair()
        argv = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,accel=tcg"),
            *("-cpu", "Nehalem", "-m", "256M", "-kernel", self._kernel, "-initrd", self._initramfs),
            *("-append", self._command_line, "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,fd={theirs.fileno()}"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        ]
        with ours, theirs, subprocess.Popen(argv, pass_fds=[theirs.fileno()]) as qemu:
            _ask(ours, "guest-sync", id=1)
            _ask(ours, "guest-exec", path="sleep", arg=["60"])
            took_s = time.monotonic() - started_at
            qemu.kill()
        return took_s


def _ask(agent: socket.socket, command: str, **arguments: object) -> None:
    agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    reply = b""
    while not reply.endswith(b"\n"):
        reply += agent.recv(4096)
    assert "return" in json.loads(reply), reply


def measure_start(folder: Path) -> list[Figure]:
    bare_guest = BareGuest(folder)
    bare, wrapped = [], []
    for _ in track(range(START_ROUNDS), "start", console=Console(stderr=True), transient=True):
        bare.append(bare_guest.start_s())
        job = IdleJob(folder)
        wrapped.append(job.start_s)
        job.close()
    ratios = [ours / theirs for ours, theirs in zip(wrapped, bare, strict=True)]
    return [
        Figure("bare QEMU: start to running program", "s", bare),
        Figure("vmwrapper: start to running program", "s", wrapped, aim=2.5),
        Figure("vmwrapper over bare QEMU", "x", ratios, aim=1.15),
    ]


def measure_idle(folder: Path) -> list[Figure]:
    cpu_s_per_min, memory_mb = [], []
    with ExitStack() as stack:
        job = IdleJob(folder)
        stack.callback(job.close)
        time.sleep(5)  # until it looks once a second
        for _ in track(range(IDLE_ROUNDS), "idle", console=Console(stderr=True), transient=True):
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
