"""From the start of a job to its running program, over bare QEMU; and what the wrapper costs while it follows it."""

import json
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from vmwrapper.folders import image_folder
from vmwrapper.guest.bundle import extract, open_bundle

from .figure import Figure, ratios, rounds
from .job import Job

START_ROUNDS = 9
IDLE_ROUNDS = 3
IDLE_S = 20.0


class IdleJob(Job):
    """A job whose program sleeps, as far as its running program."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [""], script="exec sleep 3600")
        self.wait_for("Running the program")
        self.start_s = time.monotonic() - self.started_at
        self.wrapper = psutil.Process(self.process.pid)

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()


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
