"""The pickles of CIFAR-10's Python version, read without the module pickle, so no code in a file runs.

A pickle is a small program. It may call any function, ask for any amount of memory, and describe in a few bytes an
object that takes forever to build. This reader supports only the opcodes that CIFAR-10 files need.
"""

import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MARK = object()
_MOST_KEY_BYTES = 1000


class PickleFault(Exception):
    """What is wrong with a pickle."""


class ForbiddenGlobal(PickleFault):
    """A pickle names a function or class that such a file never needs."""


@dataclass(frozen=True)
class Global:
    """A function or class that a pickle names."""

    name: str


@dataclass
class Array:
    """A numpy array as a pickle holds it."""

    shape: tuple[int, ...] = ()
    kind: str = ""
    raw: bytes = b""
    column_major: bool = False


@dataclass(frozen=True)
class _DType:
    kind: str


_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_KNOWN = ("numpy.dtype", "numpy.ndarray", "_codecs.encode", *_RECONSTRUCT)
_PASSED_OVER = {"PROTO", "FRAME", "STOP"}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    "BINBYTES8",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MADE: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


def read_pickle(content: bytes) -> dict[str, Any]:
    """Return the dictionary that a pickle holds: keys are strings; values strings, integers, lists or `Array`.

    Raises:
        ForbiddenGlobal: it names something that such a file never needs.
        PickleFault: it is damaged, uses an unsupported opcode, or holds no dictionary.
    """
    unpickled = _Machine().run(content)
    if not isinstance(unpickled, dict):
        raise PickleFault(f"it holds a {type(unpickled).__name__.lower()}, wanted a dictionary")
    return {text_of(key): value for key, value in unpickled.items()}


def text_of(value: object) -> str:
    """Return a string as `str`; the official files, written by Python 2, hold bytes.

    Raises:
        PickleFault: it is not a string.
    """
    return value.decode("latin1") if isinstance(value, bytes) else str(_expect(value, str))


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._n_unencoded = 0

    def run(self, content: bytes) -> Any:
        self._n_unencoded = len(content)
        try:
            for step, argument in _steps(content):
                self._take(step, argument)
            [value] = self._stack
        except PickleFault:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
            raise PickleFault(f"it is damaged: {error}") from None
        return value

    def _take(self, step: str, argument: Any) -> None:
        stack = self._stack
        if step in _PASSED_OVER:
            return
        if step in _VALUES:
            stack.append(argument)
        elif step in _CONSTANTS:
            stack.append(_CONSTANTS[step])
        elif step in _MADE:
            stack.append(_MADE[step]())
        elif step == "MARK":
            stack.append(_MARK)
        elif step in _PUTS:
            self._memo[argument] = stack[-1]
        elif step == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif step in _GETS:
            stack.append(self._memo[argument])
        elif step in _TUPLES:
            stack[-_TUPLES[step] :] = [tuple(stack[-_TUPLES[step] :])]
        elif step in ("TUPLE", "LIST", "DICT"):
            items = self._above_mark()
            stack.append(tuple(items) if step == "TUPLE" else items if step == "LIST" else _fill({}, items))
        elif step in ("APPEND", "APPENDS"):
            items = [stack.pop()] if step == "APPEND" else self._above_mark()
            _expect(stack[-1], list).extend(items)
        elif step in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if step == "SETITEM" else self._above_mark()
            _fill(_expect(stack[-1], dict), items)
        elif step == "GLOBAL":
            stack.append(_global(argument.replace(" ", ".", 1)))
        elif step == "STACK_GLOBAL":
            name, module = (_expect(stack.pop(), str) for _ in range(2))
            stack.append(_global(f"{module}.{name}"))
        elif step == "REDUCE":
            arguments = _expect(stack.pop(), tuple)
            stack.append(self._call(_expect(stack.pop(), Global).name, arguments))
        elif step == "BUILD":
            _build(stack, stack.pop())
        else:
            raise PickleFault(f"it takes the step {step}, which a CIFAR-10 file never needs")

    def _above_mark(self) -> list[Any]:
        at = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "numpy.dtype":
            return _DType(text_of(arguments[0]))
        if name in _RECONSTRUCT:
            return Array()
        if name != "_codecs.encode":
            raise PickleFault(f"it calls '{name}'")
        text, encoding = (_expect(argument, str) for argument in arguments)
        if encoding != "latin1":  # the call that Python 3 uses for bytes in a pickle of protocol 2
            raise PickleFault(f"it encodes bytes as {encoding!r}, wanted 'latin1'")
        self._n_unencoded -= len(text)
        if self._n_unencoded < 0:
            raise PickleFault("it encodes more bytes than it has")
        return text.encode("latin1")


def _steps(content: bytes) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        # Python 2's strings are bytes, which pickletools decodes as latin-1.
        if opcode.name in ("BINSTRING", "SHORT_BINSTRING", "STRING") and isinstance(argument, str):
            argument = argument.encode("latin1")
        yield opcode.name, argument


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleFault(f"it is damaged: found a {type(value).__name__}, wanted a {kind.__name__}")
    return value


def _fill(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, bytes | str) or len(key) > _MOST_KEY_BYTES:  # hashing nested tuples can take forever
            raise PickleFault("a key of a dictionary is no text")
        target[key] = value
    return target


def _global(name: str) -> Global:
    if name not in _KNOWN:
        raise ForbiddenGlobal(name)
    return Global(name)


def _build(stack: list[Any], state: Any) -> None:
    if isinstance(stack[-1], _DType):
        return  # byte order and other properties that single bytes do not have
    array = _expect(stack[-1], Array)
    _, shape, dtype, column_major, raw = _expect(state, tuple)
    array.shape = tuple(_expect(n, int) for n in _expect(shape, tuple))
    array.kind = _expect(dtype, _DType).kind
    array.raw, array.column_major = _expect(raw, bytes), bool(column_major)
