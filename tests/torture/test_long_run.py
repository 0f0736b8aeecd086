"""What the long run takes for growth."""

from .long_run import Sizes

SMALL = Sizes(
    files=7,
    layers=5,
    disk_bytes=1 << 27,
    our_descriptors=22,
    qemu_descriptors=96,
    our_memory_bytes=1 << 25,
    qemu_memory_bytes=1 << 28,
)


def test_growth_is_noticed() -> None:
    assert SMALL.grown(SMALL) == []
    more = Sizes(
        files=8,
        layers=6,
        disk_bytes=1 << 28,
        our_descriptors=23,
        qemu_descriptors=97,
        our_memory_bytes=1 << 26,
        qemu_memory_bytes=1 << 29,
    )
    assert len(more.grown(SMALL)) == 7
