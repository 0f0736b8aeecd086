"""Which layers of a disk become one."""

from io import BytesIO
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.qemu.layers import Layer
from vmwrapper.hypervisor.qemu.merging import mergeable


def stack_of(names: str) -> list[Layer]:
    return [Layer(Path("folder", name), BytesIO()) for name in names]


def merged(names: str, frozen: str) -> str:
    return "".join(layer.path.name for layer in mergeable(stack_of(names), frozen))


def test_the_lowest_ones_as_far_as_none_is_frozen() -> None:
    assert merged("abcd", "") == "abc"
    assert merged("abcd", "a") == ""
    assert merged("abcd", "c") == "ab"
    assert merged("abcdefg", "d") == "abc"
    assert merged("abcdefg", "bd") == ""


def test_one_alone_is_left_as_it_is() -> None:
    for names, frozen in [("", ""), ("a", ""), ("ab", ""), ("abc", "b"), ("abcd", "ac"), ("abcde", "bd")]:
        assert merged(names, frozen) == ""


@given(st.integers(0, 12), st.sets(st.integers(0, 12)))
def test_they_follow_each_other_and_nobody_else_needs_them(height: int, frozen_at: set[int]) -> None:
    names = "abcdefghijkl"[:height]
    frozen = "".join(name for at, name in enumerate(names) if at in frozen_at)
    found = merged(names, frozen)
    assert found == "" or len(found) >= 2
    assert found in names[:-1]
    assert not set(found) & set(frozen)
    assert names.startswith(found)
    assert len(found) in (0, len(names[:-1])) or names[len(found)] in frozen


@given(st.lists(st.booleans(), max_size=40))
def test_two_generations_keep_a_stack_low(merges_end: list[bool]) -> None:
    """As snapshots come and go: one layer more each time, the top ones of the last two frozen."""
    stack = ["1"]
    tops: list[str] = []
    for number in range(2, 2 + len(merges_end)):
        tops = [*tops, stack[-1]][-2:]
        stack.append(str(number))
        gone = {layer.path.name for layer in mergeable([Layer(Path(name), BytesIO()) for name in stack], tops)[1:]}
        stack = [name for name in stack if name not in gone]
        assert set(tops) < set(stack)
        assert stack[-1] == str(number)
        assert len(stack) <= 4
