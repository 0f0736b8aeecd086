"""A firmware of our own, all of whose work is to prove that a virtual processor makes progress.

It takes the way that every kernel takes, from real mode through protected mode into long mode, counts down from
20 million in 64-bit code, and makes QEMU exit through its isa-debug-exit device. An accelerator that merely opens does
not get there, and one that emulates every instruction does not get there in time.

Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, "First Instruction Executed",
"Switching to Protected Mode", "Initializing IA-32e Mode"; volume 2 for the encodings; QEMU's hw/misc/debugexit.c.
"""

IMAGE_BYTES = 0x10000  # the step in which QEMU takes a -bios image
DEBUG_EXIT_DEVICE = "isa-debug-exit,iobase=0xf4,iosize=0x04"
DONE_STATUS = 33 << 1 | 1  # how the device turns the 33 that is written into QEMU's exit status

# The image appears twice: below 4 GiB, where the processor starts, and at 0xf0000, where the rest of it runs.
_RESET_VECTOR = bytes.fromhex(
    "ea 00 00 00 f0"  # ljmp $0xf000, $0
)

# RAM starts as zeros, DS with base 0, and interrupts off. The page tables lie in RAM, although the image could hold
# them with their accessed bits set: under nested paging hardware may treat every walk of a guest's tables as a write.
_REAL_MODE = bytes.fromhex(
    "66 c7 06 00 10 03 20 00 00"  # movl $0x2003, 0x1000    first PML4 entry: table at 0x2000, writable, present
    "66 c7 06 00 20 03 30 00 00"  # movl $0x3003, 0x2000    first PDPT entry: table at 0x3000, writable, present
    "66 c7 06 00 30 83 00 00 00"  # movl $0x83, 0x3000      first PD entry: 2 MiB page at 0, writable, present
    "2e 66 0f 01 16 30 03"  #       lgdtl %cs:0x330
    "0f 20 c0"  #                   mov %cr0, %eax
    "0c 01"  #                      or $0x1, %al            protection enable
    "0f 22 c0"  #                   mov %eax, %cr0
    "66 ea 00 01 0f 00 08 00"  #    ljmpl $0x8, $0xf0100
)

_PROTECTED_MODE = bytes.fromhex(
    "0f 20 e0"  #                   mov %cr4, %eax
    "0c 20"  #                      or $0x20, %al           physical address extension
    "0f 22 e0"  #                   mov %eax, %cr4
    "b8 00 10 00 00"  #             mov $0x1000, %eax
    "0f 22 d8"  #                   mov %eax, %cr3
    "b9 80 00 00 c0"  #             mov $0xc0000080, %ecx   IA32_EFER
    "0f 32"  #                      rdmsr
    "80 cc 01"  #                   or $0x1, %ah            long mode enable
    "0f 30"  #                      wrmsr
    "0f 20 c0"  #                   mov %cr0, %eax
    "0d 00 00 00 80"  #             or $0x80000000, %eax    paging
    "0f 22 c0"  #                   mov %eax, %cr0
    "ea 00 02 0f 00 10 00"  #       ljmp $0x10, $0xf0200
)

# Hardware takes some 10 ms for the countdown, TCG 0.1 s. A /dev/kvm whose kernel emulates each instruction takes 30 s,
# and would have passed for usable with a million (1.5 s).
_LONG_MODE = bytes.fromhex(
    "0f 01 f8"  #                   swapgs                  invalid in any other mode, and here that resets the machine
    "b9 00 2d 31 01"  #             mov $20000000, %ecx
    "48 ff c9"  #             1:    dec %rcx
    "75 fb"  #                      jnz 1b
    "b0 21"  #                      mov $33, %al
    "e6 f4"  #                      out %al, $0xf4
    "f4"  #                   2:    hlt
    "eb fd"  #                      jmp 2b
)

# Descriptors with the accessed bit set, which the processor could not set in ROM.
_SEGMENTS = bytes.fromhex(
    "00 00 00 00 00 00 00 00"  # 0x00: null
    "ff ff 00 00 00 9b cf 00"  # 0x08: 32-bit code, base 0, limit 4 GiB
    "ff ff 00 00 00 9b af 00"  # 0x10: 64-bit code
)
_SEGMENTS_POINTER = bytes.fromhex(
    "17 00"  #       the table's last byte
    "00 03 0f 00"  # its linear address, 0xf0300
)

_LAYOUT = {
    0x0000: _REAL_MODE,
    0x0100: _PROTECTED_MODE,
    0x0200: _LONG_MODE,
    0x0300: _SEGMENTS,
    0x0330: _SEGMENTS_POINTER,
    0xFFF0: _RESET_VECTOR,
}


def image() -> bytes:
    """Build the image for `-bios`: with DEBUG_EXIT_DEVICE, QEMU exits with DONE_STATUS once a guest has run it.

    Needs an x86 machine with an ISA bus and at least 16 KiB of RAM.
    """
    rom = bytearray(IMAGE_BYTES)
    for offset, piece in _LAYOUT.items():
        rom[offset : offset + len(piece)] = piece
    return bytes(rom)
