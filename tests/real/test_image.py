"""The default guest, built from real packages and booted by the real QEMU."""

import asyncio
import base64
import json
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmwrapper import process
from vmwrapper.errors import VmwrapperError
from vmwrapper.guest import packages
from vmwrapper.guest.bundle import extract, open_bundle
from vmwrapper.guest.image import build_default_image

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not packages.available(), reason="no apt-get and dpkg-deb on this host"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no qemu-system-x86_64 on this host"),
]

BOOT_LIMIT_S = 60
AGENT_PORT = "org.qemu.guest_agent.0"
OTHER_PORT = "test.data"


def build(destination: Path) -> list[str]:
    """What a build reports."""
    said: list[str] = []
    assert asyncio.run(build_default_image(destination, report=said.append)) == destination
    return said


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("images") / "default.vmguest"
    build(destination)
    return destination


class Agent:
    """A booted guest's agent, as spoken to by nobody else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def synchronize(self, number: int) -> None:
        self._writer.write(b"\xff")
        self._send("guest-sync-delimited", {"id": number})
        while json.loads((await self._reader.readline()).lstrip(b"\xff")) != {"return": number}:
            pass

    async def call(self, command: str, **arguments: object) -> dict:
        self._send(command, arguments)
        return json.loads(await self._reader.readline())["return"]

    async def sh(self, script: str) -> str:
        """The output of a script that must succeed."""
        arguments = {"path": "/bin/sh", "arg": ["-ec", script], "capture-output": True}
        pid = (await self.call("guest-exec", **arguments))["pid"]
        while not (status := await self.call("guest-exec-status", pid=pid))["exited"]:
            await asyncio.sleep(0.02)
        said = {stream: base64.b64decode(status.get(f"{stream}-data", "")).decode() for stream in ("out", "err")}
        assert status.get("exitcode") == 0, said
        return said["out"]

    def _send(self, command: str, arguments: dict[str, object]) -> None:
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")


@pytest.fixture
async def agent(image: Path, tmp_path: Path) -> AsyncIterator[Agent]:
    """The agent of a guest with all devices that the image has drivers for, and a disk of 64 MiB."""
    bundle = open_bundle(image)
    for name in ("kernel", "initramfs"):
        with (tmp_path / name).open("wb") as file:
            extract(bundle, getattr(bundle, name), file)
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 64 * 1024**2)
    ours, theirs = socket.socketpair()
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35,accel=tcg", "-cpu", "Nehalem", "-m", "256"),
        *("-kernel", str(tmp_path / "kernel"), "-initrd", str(tmp_path / "initramfs"), "-append", bundle.command_line),
        *("-serial", f"file:{tmp_path / 'console'}", "-device", "virtio-rng-pci", "-device", "pvpanic-pci"),
        *("-drive", f"if=none,id=disk,format=raw,file={tmp_path / 'disk'}", "-device", "virtio-blk-pci,drive=disk"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={theirs.fileno()}"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
        *("-chardev", "null,id=other", "-device", f"virtserialport,chardev=other,name={OTHER_PORT}"),
    ]
    async with process.child(argv, pass_fds=[theirs.fileno()]):
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        agent = Agent(reader, writer)
        async with asyncio.timeout(BOOT_LIMIT_S):
            await agent.synchronize(1)
        yield agent
        writer.close()


def test_a_second_build_gives_the_same_bytes(image: Path, tmp_path: Path) -> None:
    build(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == image.read_bytes()


def test_a_current_image_is_left_alone_at_once(image: Path) -> None:
    before = image.stat()
    took_s = []
    for _ in range(3):  # of which one is not disturbed by what else this machine does
        start_s = time.monotonic()
        assert build(image) == [f"{image} is up to date"]
        took_s.append(time.monotonic() - start_s)
    assert min(took_s) < 0.2
    assert image.stat().st_ino == before.st_ino


def test_an_image_that_is_no_bundle_is_built_anew(image: Path, tmp_path: Path) -> None:
    (tmp_path / "default.vmguest").write_bytes(image.read_bytes()[:100_000])
    build(tmp_path / "default.vmguest")
    assert (tmp_path / "default.vmguest").read_bytes() == image.read_bytes()


def test_every_package_is_named_with_its_version(image: Path) -> None:
    built_from = open_bundle(image).built_from
    assert {"busybox-static", "libc6", "qemu-guest-agent", "xxhash"} <= built_from.keys()
    assert any(name.startswith("linux-image-") for name in built_from)
    assert all(version[0].isdigit() for version in built_from.values())


async def test_of_two_builds_at_once_the_second_waits_and_builds_nothing(tmp_path: Path) -> None:
    said: list[list[str]] = [[], []]
    destination = tmp_path / "default.vmguest"
    async with asyncio.TaskGroup() as both:
        for lines in said:
            both.create_task(build_default_image(destination, report=lines.append))
    assert said[0][-1].startswith("built ")
    assert said[1] == ["waiting for another build to end"]


@pytest.mark.parametrize("after_s", [0.05, 0.5, 1.5, 3])
async def test_a_cancelled_build_leaves_nothing_behind(tmp_path: Path, after_s: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after_s):
            await build_default_image(tmp_path / "default.vmguest", report=print)
    assert [path.name for path in tmp_path.iterdir()] == [".default.vmguest.lock"]


def test_stale_package_lists_are_replaced_by_private_ones(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_apt = tmp_path / "bin/apt-get"
    stale_apt.parent.mkdir()
    stale_apt.write_text(
        '#!/bin/sh\ncase "$*" in *Dir::State=*) exec /usr/bin/apt-get "$@";; esac\necho 404 Not Found >&2\nexit 100\n'
    )
    stale_apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(stale_apt.parent), prepend=os.pathsep)
    said = build(tmp_path / "default.vmguest")
    assert "apt's package lists are missing or too old: fetching new ones for this build" in said
    assert open_bundle(tmp_path / "default.vmguest").built_from.keys() == open_bundle(image).built_from.keys()


def test_a_host_without_apt_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmwrapperError, match=r"on Debian 12 or newer and copy its default\.vmguest to /"):
        build(tmp_path / "default.vmguest")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VmwrapperError, match=r"can't build .*file/default\.vmguest"):
        build(tmp_path / "file/default.vmguest")


async def test_the_guest_has_what_jobs_rely_on(agent: Agent) -> None:
    assert len((await agent.sh("cat /proc/sys/kernel/random/boot_id")).strip()) == 36
    for tool in ("awk", "mke2fs", "setsid", "su", "tar", "xxhsum"):
        assert await agent.sh(f"which {tool}")
    assert await agent.sh("stat -c %a / /tmp /root /home /run") == "755\n1777\n700\n755\n755\n"
    assert await agent.sh("ls /etc/vmwrapper-guest /dev/vda /dev/hwrng; hostname")
    assert await agent.sh("su root -c 'id -un'") == "root\n"
    assert "127.0.0.1" in await agent.sh("ip addr show up dev lo")
    assert await agent.sh("cat /sys/fs/cgroup/cgroup.procs")
    assert await agent.sh("printf x | xxhsum -H1")
    assert "pvpanic_pci" in await agent.sh("lsmod")


async def test_every_port_has_its_name(agent: Agent) -> None:
    assert (await agent.sh("ls /dev/virtio-ports")).split() == [AGENT_PORT, OTHER_PORT]


async def test_a_disk_can_be_formatted_and_mounted(agent: Agent) -> None:
    await agent.sh(
        "mke2fs -F /dev/vda >/dev/null; mkdir /mnt; mount -t ext4 /dev/vda /mnt; echo x >/mnt/x; umount /mnt"
    )


async def test_a_user_can_be_created_and_become(agent: Agent) -> None:
    await agent.sh("echo boinc:x:1000:1000::/home/boinc:/bin/sh >>/etc/passwd; echo boinc:x:1000: >>/etc/group")
    assert await agent.sh("su boinc -c 'id -un; touch /tmp/mine'") == "boinc\n"


async def test_orphans_are_reaped(agent: Agent) -> None:
    await agent.sh("for i in 1 2 3 4 5; do setsid sh -c 'sleep 0.1 & exit' & done; wait")
    await asyncio.sleep(1)
    assert await agent.sh("grep -l 'State:.Z' /proc/[0-9]*/status || true") == ""
    assert await agent.sh("pidof sleep || true") == ""


async def test_a_dead_agent_is_started_again(agent: Agent) -> None:
    before = await agent.sh("pidof qemu-ga")
    await agent.sh("(sleep 0.3; kill -9 $(pidof qemu-ga)) >/dev/null 2>&1 &")
    await asyncio.sleep(1)
    async with asyncio.timeout(BOOT_LIMIT_S):
        await agent.synchronize(2)
    assert await agent.sh("pidof qemu-ga") != before
