"""Tell, without unpickling, how large the tuples of a pickle are once everything in them is written out.

A pickle can make a tuple of two references to another such tuple, and so on: sixty of them take a few hundred bytes,
and hashing or printing the last takes 2^60 steps.
"""

import pickletools
from typing import Any

_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_MARK = 0  # on the stack in place of a size; every size is 1 or more


def largest_tuple(pickle: bytes) -> int:
    """Return the size of a pickle's largest tuple: a tuple counts 1 and the sizes of its items, all else counts 1.

    Raises:
        ValueError: the pickle is damaged.
    """
    stack: list[int] = []
    memo: dict[Any, int] = {}
    largest = 1
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            name = opcode.name
            if name in _GETS:
                stack.append(memo[argument])
            elif name in _PUTS:
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "DUP":
                stack.append(stack[-1])
            elif name in _TUPLES or name == "TUPLE":
                items = [stack.pop() for _ in range(_TUPLES[name])] if name in _TUPLES else _above_mark(stack)
                stack.append(1 + sum(items))
                largest = max(largest, stack[-1])
            else:
                _pass(stack, opcode)
    except (IndexError, KeyError) as error:
        raise ValueError(f"it is no whole pickle: {error}") from None
    return largest


def _above_mark(stack: list[int]) -> list[int]:
    """Take what lies above the last mark from the stack, and the mark.

    Raises:
        IndexError: there is none.
    """
    items = []
    while (size := stack.pop()) != _MARK:
        items.append(size)
    return items


def _pass(stack: list[int], opcode: pickletools.OpcodeInfo) -> None:
    """Take from the stack and put on it as many things as an opcode does that makes no tuple."""
    taken = opcode.stack_before
    if pickletools.markobject in taken:
        _above_mark(stack)
        taken = taken[: taken.index(pickletools.markobject)]
    for _ in taken:
        stack.pop()
    stack += [_MARK if thing is pickletools.markobject else 1 for thing in opcode.stack_after]
