"""A tiny Linux program for x86-64 that has the kernel seed its random numbers anew.

Two guests that were reverted to the same snapshot would draw the same ones. Linux with CONFIG_VMGENID sees to that by
itself; the default guest's kernel has none, and what is merely written to /dev/urandom counts only after a minute.
Source: Linux's drivers/char/random.c, RNDRESEEDCRNG; the ELF-64 Object File Format, version 1.5.
"""

import struct

SEED_BYTES = 64
"""What it reads from its standard input."""

_ADDRESS = 0x400000
_HEADERS_BYTES = 64 + 56
_DEVICE = b"/dev/urandom\0"
_SYSCALL = b"\x0f\x05"
_USE_DEVICE = (
    b"\xbe\x01\x00\x00\x00" + _SYSCALL +  # mov esi, O_WRONLY
    b"\x89\xc3"  # mov ebx, eax
    b"\x48\x83\xec\x40"  # sub rsp, 64
    b"\x31\xc0\x31\xff"  # xor eax, eax (read); xor edi, edi (standard input)
    b"\x48\x89\xe6\xba\x40\x00\x00\x00" + _SYSCALL +  # mov rsi, rsp; mov edx, 64
    b"\x89\xc2\xb8\x01\x00\x00\x00\x89\xdf" + _SYSCALL +  # mov edx, eax; mov eax, 1 (write); mov edi, ebx
    b"\xb8\x10\x00\x00\x00\x89\xdf\xbe\x07\x52\x00\x00" + _SYSCALL +  # mov eax, 16 (ioctl); mov esi, RNDRESEEDCRNG
    b"\x89\xc7\xb8\x3c\x00\x00\x00" + _SYSCALL  # mov edi, eax; mov eax, 60 (exit)
)  # fmt: skip
_OPEN_DEVICE = b"\xb8\x02\x00\x00\x00\x48\x8d\x3d" + struct.pack("<i", len(_USE_DEVICE))
"""mov eax, 2 (open); lea rdi, [rip + that]: the device's name is behind the code."""


def program() -> bytes:
    """The executable file. Its exit status is 0 where the kernel did it."""
    contents = _OPEN_DEVICE + _USE_DEVICE + _DEVICE
    size = _HEADERS_BYTES + len(contents)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    entry = _ADDRESS + _HEADERS_BYTES
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    return header + segment + contents
