"""The default guest, built without root from Debian's packages: its cloud kernel, busybox and QEMU's guest agent."""

import asyncio
import io
import lzma
import platform
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from vmwrapper import process
from vmwrapper.errors import JobError, VmwrapperError
from vmwrapper.folders import image_folder
from vmwrapper.guest import initramfs, packages, recipe
from vmwrapper.guest.bundle import Contents, open_bundle, verify, write_bundle
from vmwrapper.guest.initramfs import Node
from vmwrapper.guest.kernel import bootable
from vmwrapper.guest.packages import Package, Wanted

_LOCK_POLL_S = 0.2
_BUSYBOX_LIMIT_S = 10


async def build_default_image(destination: Path, *, report: Callable[[str], None]) -> Path:
    """Build the default guest, unless `destination` is a bundle of the same recipe, and return `destination`.

    Takes some ten seconds and 30 MB from the Debian mirror that apt is set up for. The same versions of packages give
    the same bytes. `report` gets a line for a person at each step. One build at a time works in a folder; a second one
    waits. Raises VmwrapperError where it can't build; what was at `destination` is then untouched.
    """
    if _is_current(destination):
        report(f"{destination} is up to date")
        return destination
    _require_debian()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        async with _only_builder(destination, report):
            if not _is_current(destination):
                await _build(destination, report)
    except OSError as error:
        raise VmwrapperError(f"can't build {destination}: {error}") from error
    return destination


def _is_current(destination: Path) -> bool:
    try:
        bundle = open_bundle(destination)
        verify(bundle)
    except JobError:
        return False
    return bundle.recipe == recipe.digest()


def _require_debian() -> None:
    if not packages.available() or platform.machine() != "x86_64":
        raise VmwrapperError(
            "the default guest is made from Debian's packages and this host has no apt-get and dpkg-deb for x86-64; "
            f"run `vmwrapper image build` on Debian 12 or newer and copy its default.vmguest to {image_folder()}"
        )


@asynccontextmanager
async def _only_builder(destination: Path, report: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the lock of the destination. Its empty file stays: a build could still wait for one that is unlinked."""
    import fcntl  # noqa: PLC0415  (absent on Windows, which `_require_debian` keeps out)

    with destination.with_name(f".{destination.name}.lock").open("wb") as lock:
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report("waiting for another build to end")
                waiting = True
                await asyncio.sleep(_LOCK_POLL_S)
        yield


async def _build(destination: Path, report: Callable[[str], None]) -> None:
    workspace = destination.with_name(f".{destination.name}.build")
    shutil.rmtree(workspace, ignore_errors=True)  # of a build that was killed
    workspace.mkdir()
    try:
        report("fetching Debian packages")
        fetched = await packages.fetch([recipe.KERNEL, *recipe.FILES], workspace, report=report)
        applets = await _applets(fetched[recipe.BUSYBOX], workspace)
        report("packing")
        kernel, packed = await asyncio.to_thread(_parts, fetched, applets)
        built_from = {package.name: package.version for package in fetched.values()}
        contents = Contents(
            kernel=io.BytesIO(kernel),
            initramfs=io.BytesIO(packed),
            command_line=recipe.COMMAND_LINE,
            built_from=built_from,
            recipe=recipe.digest(),
        )
        write_bundle(destination, contents)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    report(f"built {destination}, {(len(kernel) + len(packed)) / 1e6:.0f} MB")


async def _applets(busybox: Package, workspace: Path) -> list[str]:
    """The names under which busybox is something."""
    program = workspace / "busybox"
    program.write_bytes(busybox.read("usr/bin/busybox"))
    program.chmod(0o755)
    listed = await process.run([str(program), "--list"], limit_s=_BUSYBOX_LIMIT_S)
    return [name for name in listed.decode().split() if name != "busybox"]


def _parts(fetched: Mapping[Wanted, Package], applets: list[str]) -> tuple[bytes, bytes]:
    """Kernel and initramfs."""
    linux = fetched[recipe.KERNEL]
    nodes = recipe.SKELETON | {f"usr/bin/{applet}": initramfs.link("busybox") for applet in applets}
    for wanted, paths in recipe.FILES.items():
        nodes |= {path: initramfs.file(fetched[wanted].read(path), mode=0o755) for path in paths}
    for package in fetched.values():
        copyright_file = f"usr/share/doc/{package.name}/copyright"
        if package.has(copyright_file):
            nodes[copyright_file] = initramfs.file(package.read(copyright_file))
    nodes |= _modules(linux)
    kernel = linux.read(f"boot/vmlinuz-{_release(linux)}")
    return bootable(kernel), initramfs.archive(nodes)


def _modules(linux: Package) -> dict[str, Node]:
    """The modules that are not part of the kernel itself, with their place in the order of loading in their names."""
    tree = f"usr/lib/modules/{_release(linux)}"
    built_in = linux.read(f"{tree}/modules.builtin").decode().split()
    nodes: dict[str, Node] = {}
    for position, module in enumerate(recipe.MODULES):
        path = f"kernel/{module}.ko"
        if path in built_in:
            continue
        name = f"usr/lib/vmwrapper/modules/{position:02}-{Path(path).name}"
        if linux.has(f"{tree}/{path}.xz"):  # since Debian 13
            nodes[name] = initramfs.file(lzma.decompress(linux.read(f"{tree}/{path}.xz")))
        else:
            nodes[name] = initramfs.file(linux.read(f"{tree}/{path}"))
    return nodes


def _release(linux: Package) -> str:
    return linux.name.removeprefix("linux-image-")
