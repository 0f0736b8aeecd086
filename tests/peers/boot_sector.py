"""The smallest guest: one sector that a BIOS loads, which counts on its serial port and on its disk.

It prints `BOOT m` when it begins, and from then on, each time that it has counted to n, `TICK n` and `DISK m`. Here m
is the number on the disk: n - 1, where memory and disk are of the same moment, for n is written to it afterwards, and
a boot counts on from it. Without a disk (one that boots from a CD) it counts from 0 in memory only, and prints no m.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.debian_mirror import run
from vmwrapper.folders import cache_folder

TOOLS = ("as", "ld", "qemu-img", "genisoimage")

_DISK_BYTES = 4 << 20
_CD_SECTOR = 2048
# Source: Ralf Brown's Interrupt List (INT 13h AH=42h and 43h, INT 15h AH=53h); the 16550's line status at port 3fdh.
_ASSEMBLY = """\
    .code16
    .globl _start
    .set numbers_sector, 0x7e00
    .set first_disk, 0x80
    .set bios_timer, 0x46c              # counts 18.2 times a second
_start:
    ljmp $0, $begin
begin:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $_start, %sp
    cld
    sti
    movw $boot, %si
    call print
    movb $0x42, %ah
    call disk
    jc no_disk
    movl numbers_sector, %eax
    movl %eax, count
    call print_number
    jmp again
no_disk:
    incb has_no_disk
    call print_end
again:
    incl count
    movw $tick, %si
    call print
    movl count, %eax
    call print_number
    cmpb $0, has_no_disk
    jne decide
    movb $0x42, %ah
    call disk
    jc decide
    movw $on_disk, %si
    call print
    movl numbers_sector, %eax
    call print_number
    movl count, %eax
    movl %eax, numbers_sector
write:
    movw $0x4300, %ax
    call disk
    jc write
decide:
    movl count, %eax
    cmpl $POWERS_OFF_AT, %eax
    je power_off
    cmpl $CRASHES_AT, %eax
    je crash
    movl bios_timer, %ebx
wait:
    .if RESTS
    hlt
    .endif
    movl bios_timer, %eax
    subl %ebx, %eax
    cmpl $TICKS, %eax
    jb wait
    jmp again

power_off:
    movw $0x5301, %ax                   # connect, in real mode
    xorw %bx, %bx
    int $0x15
    movw $0x530e, %ax                   # as one that knows version 1.2
    xorw %bx, %bx
    movw $0x0102, %cx
    int $0x15
    movw $0x5307, %ax                   # all devices: off
    movw $1, %bx
    movw $3, %cx
    int $0x15
crash:
    lidt no_handlers
    int3

disk:                                   # ah: what to do with the sector; sets carry where that failed
    movb $first_disk, %dl
    movw $sector_one, %si
    int $0x13
    ret

print:                                  # the characters from si on, up to a zero
    lodsb
    testb %al, %al
    jz printed
    call print_character
    jmp print
printed:
    ret

print_number:                           # eax, and the end of the line
    movl $10, %ebx
    xorw %cx, %cx
divide:
    xorl %edx, %edx
    divl %ebx
    pushw %dx
    incw %cx
    testl %eax, %eax
    jnz divide
digits:
    popw %ax
    addb $'0', %al
    call print_character
    loop digits
print_end:
    movb $'\\n', %al
print_character:
    pushw %ax
    movw $0x3fd, %dx
until_sent:
    inb %dx, %al
    testb $0x20, %al
    jz until_sent
    popw %ax
    movw $0x3f8, %dx
    outb %al, %dx
    ret

boot:    .asciz "BOOT "
tick:    .asciz "TICK "
on_disk: .asciz "DISK "
count:   .long 0
has_no_disk: .byte 0
no_handlers: .word 0, 0, 0
sector_one: .byte 16, 0
    .word 1, numbers_sector, 0
    .quad 1
    .org 510
    .word 0xaa55
"""


def missing() -> str | None:
    """What keeps this machine from making the guest, or None."""
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"making a guest of one sector needs {', '.join(absent)}: make test installs that for root"
    return None


def boot_sector(
    *, timer_ticks: int = 18, rests: bool = True, powers_off_at: int | None = None, crashes_at: int | None = None
) -> bytes:
    """A guest of 512 bytes.

    It counts every `timer_ticks`, of which 18.2 are a second, and halts in between if it `rests`, else it is busy all
    the time. At `powers_off_at` it turns the machine off, and at `crashes_at` it brings the processor to a triple
    fault, when it has printed and written that number.
    """
    symbols = {
        "TICKS": timer_ticks,
        "RESTS": int(rests),
        "POWERS_OFF_AT": powers_off_at or 0,
        "CRASHES_AT": crashes_at or 0,
    }
    defined = [word for name, value in symbols.items() for word in ("--defsym", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        source, linkable, sector = (Path(folder) / name for name in ("boot.S", "boot.o", "boot.bin"))
        source.write_text(_ASSEMBLY)
        run("as", "--32", *defined, "-o", linkable, source)
        run("ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-o", sector, linkable)
        return sector.read_bytes()


def disk(sector: bytes, suffix: str) -> Path:
    """A disk of 4 MiB that boots the sector: `raw`, `vdi`, `vmdk` or `vhd`, which must not be changed."""
    return _kept(sector, suffix, _make_disk)


def cd(sector: bytes) -> Path:
    """A CD that boots the sector, which must not be changed."""
    return _kept(sector, "iso", _make_cd)


def _kept(sector: bytes, suffix: str, make: Callable[[bytes, Path], None]) -> Path:
    digest = hashlib.sha256(Path(__file__).read_bytes() + sector).hexdigest()[:16]
    image = cache_folder() / f"test/boot-{digest}.{suffix}"
    if not image.exists():
        image.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
            made = Path(scratch) / image.name
            make(sector, made)
            with contextlib.suppress(FileExistsError):  # another test, run at the same time, may use it by now
                image.hardlink_to(made)
    return image


_FORMATS = {"vdi": ("vdi",), "vmdk": ("vmdk",), "vhd": ("vpc", "-o", "force_size")}


def _make_disk(sector: bytes, made: Path) -> None:
    raw = made.with_suffix(".raw")
    raw.write_bytes(sector)
    os.truncate(raw, _DISK_BYTES)
    if made != raw:
        run("qemu-img", "convert", "-f", "raw", "-O", *_FORMATS[made.suffix[1:]], raw, made)


def _make_cd(sector: bytes, made: Path) -> None:
    content = made.parent / "content"
    content.mkdir()
    (content / "boot.bin").write_bytes(sector.ljust(_CD_SECTOR, b"\0"))
    boots = ("-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4")
    run("genisoimage", "-quiet", *boots, "-o", made, content)
