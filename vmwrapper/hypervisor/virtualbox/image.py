"""The disk or CD that a machine boots from."""

from pathlib import Path

from vmwrapper.errors import JobError
from vmwrapper.hypervisor.image_format import DiskFile, ImageFormat, UnusableDisk, image_format

IMAGE_SUFFIXES = (".vdi", ".vmdk", ".vhd", ".iso")

_FORMATS = {ImageFormat.VDI: "VDI", ImageFormat.VMDK: "VMDK", ImageFormat.VPC: "VHD"}
"""As VirtualBox calls them."""
_CD_MAGIC = (b"CD001", 0x8001)  # ECMA-119, 8.1.2


def check_image(path: Path) -> str | None:
    """Look at a base image, which may be hostile: a disk's format, or None for a CD.

    Raises JobError with what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            magic, at = _CD_MAGIC
            file.seek(at)
            if file.read(len(magic)) == magic:
                return None
            found = image_format(DiskFile(file, 0, path.stat().st_size))
    except UnusableDisk as unusable:
        raise JobError(f"the image {path} {unusable}") from unusable
    except OSError as error:
        raise JobError(f"can't read the image {path}: {error.strerror}") from error
    if found not in _FORMATS:
        raise JobError(
            f"the image {path} is in {found} format, which VirtualBox does not run:"
            f" convert it with `qemu-img convert -O vdi {path} NEW.vdi`"
        )
    return _FORMATS[found]
