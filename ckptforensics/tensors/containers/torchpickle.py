"""The pickle inside a PyTorch checkpoint, read as data: nothing it names is imported or called.

A pickle is a program for a small stack machine. `torch.save` writes a state dict with the opcodes
and globals listed here and no others; a list of globals, not of dangers, is what makes the reader
safe. A global becomes a record of its own name, and the few that stand for a rebuilt tensor,
parameter, size or ordered dict are answered with records too. Everything else ends in an error
that names the opcode or the global and its byte.

Work and memory are bounded by the length of the pickle: no opcode loops, values shared through the
memo are never walked, and keys of dicts are scalars, so that none hashes a nest of tuples.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ckptforensics.errors import FormatError, UnsafePickle
from ckptforensics.tensors.containers.torchrecords import (
    ELEMENT_TYPES,
    STORAGES,
    UNTYPED,
    ElementType,
    Global,
    OrderedDict,
    Storage,
    View,
)

# Far above the largest state dicts: a tensor takes about 32 opcodes and one name.
_MOST_OPCODES = 4_000_000
_MOST_MEMO = 2_000_000
_DEEPEST_STACK = 100_000
_DEEPEST_MARKS = 1_000
_LONGEST_STRING = 1 << 20
_LONGEST_GLOBAL = 256
_MOST_DIMENSIONS = 32
_PROTOCOLS = range(2, 6)
_BYTE, _SHORT, _WORD, _LONG = (struct.Struct(code) for code in ("<B", "<H", "<I", "<Q"))
_SIGNED_WORD, _DOUBLE = struct.Struct("<i"), struct.Struct(">d")

_ADVICE: Final = "do not load this file with torch.load unless you trust whoever made it"


def unpickle(data: bytes, *, path: Path, begin: int) -> Any:
    """The object that the pickle `data` describes, made of plain data and the records above.

    Parameters
    ----------
    data : the whole pickle
    path : the file it comes from, for messages
    begin : its first byte in the file, for messages

    Raises
    ------
    FormatError
        if the pickle is damaged, exceeds a limit or uses an opcode or a global that
        `torch.save` does not write for a state dict.
    """
    return _Machine(data, path, begin).run()


class _Machine:
    """The stack machine. A mark is a height of the stack under which nothing may be popped."""

    def __init__(self, data: bytes, path: Path, begin: int) -> None:
        self.data = data
        self.path = path
        self.begin = begin
        self.at = 0  # next byte to read
        self.opcode_at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.stopped = False

    def run(self) -> Any:
        data, stack, marks, handlers = self.data, self.stack, self.marks, dict(_OPCODES)
        if data[:1] != b"\x80":
            raise self.refused(
                "the pickle does not begin with its protocol: it is of protocol 0 or 1"
            )
        for _ in range(_MOST_OPCODES):
            self.opcode_at = at = self.at
            if at == len(data):
                raise self.refused("the pickle ends before its end", hint="the file is damaged")
            self.at = at + 1
            handler = handlers.get(data[at])
            if handler is None:
                raise self.refused(f"the pickle uses the opcode {_name_of(data[at])}", hint=_ADVICE)
            handler(self)
            if self.stopped:
                return stack[0]
            if len(stack) > _DEEPEST_STACK or len(marks) > _DEEPEST_MARKS:
                raise self.refused("the pickle needs a stack deeper than any state dict's")
        raise self.refused(f"the pickle has more than {_MOST_OPCODES:,} opcodes")

    def refused(self, what: str, *, hint: str | None = None) -> FormatError:
        kind = UnsafePickle if hint == _ADVICE else FormatError
        return kind(what, path=self.path, offset=self.begin + self.opcode_at, hint=hint)

    # Reading and the stack.

    def take(self, count: int) -> bytes:
        begin = self.at
        if count > len(self.data) - begin:
            raise self.refused("the pickle ends in the middle", hint="the file is damaged")
        self.at = begin + count
        return self.data[begin : self.at]

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def text(self, length: int) -> str:
        if length > _LONGEST_STRING:
            raise self.refused(f"the pickle holds a string of {length:,} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.refused("a string of the pickle is not UTF-8") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _LONGEST_GLOBAL + 1)
        if end < 0:
            raise self.refused(
                f"the pickle names a global without end: {self.data[self.at :][:40]!r}"
            )
        text = self.text(end - self.at)
        self.at = end + 1
        return text

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.refused(
                "the pickle takes a value from an empty stack", hint="the file is damaged"
            )
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise self.refused(
                "the pickle ends a group it has not begun", hint="the file is damaged"
            )
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def pop_group(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    # Opcodes.

    def proto(self) -> None:
        protocol = self.number(_BYTE)
        if self.opcode_at != 0 or protocol not in _PROTOCOLS:
            raise self.refused(
                f"pickle protocol {protocol} is not supported here (2 to 5 are, once)"
            )

    def frame(self) -> None:
        if self.number(_LONG) > len(self.data) - self.at:
            raise self.refused("a frame of the pickle is longer than the pickle")

    def stop(self) -> None:
        if len(self.stack) != 1 or self.marks:
            raise self.refused(
                "the pickle ends with an unfinished value", hint="the file is damaged"
            )
        if self.at != len(self.data):
            raise self.refused(f"{len(self.data) - self.at:,} bytes follow the end of the pickle")
        self.stopped = True

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def long1(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number(_BYTE)), "little", signed=True))

    def tuple_(self) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def append(self) -> None:
        self.extend([self.pop()])

    def appends(self) -> None:
        self.extend(self.pop_mark())

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise self.refused(f"the pickle appends to {_kind(target)}", hint=_ADVICE)
        target.extend(values)

    def setitem(self) -> None:
        self.update(list(self.pop_group(2)))

    def setitems(self) -> None:
        self.update(self.pop_mark())

    def update(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict):
            raise self.refused(f"the pickle sets an item of {_kind(target)}", hint=_ADVICE)
        if len(values) % 2:
            raise self.refused("the pickle sets a key without a value", hint="the file is damaged")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if key is not None and type(key) not in (str, int, float, bool):
                raise self.refused(f"the pickle uses {_kind(key)} as the key of a dict")
            if key in target:
                raise self.refused(f"the pickle sets the key {key!r} twice")
            target[key] = value

    def put(self, index: int) -> None:
        # The order of their making is the order of their numbers.
        if index != len(self.memo):
            raise self.refused(
                f"the pickle puts memo entry {index:,} where entry {len(self.memo):,} is next"
            )
        if index >= _MOST_MEMO:
            raise self.refused(f"the pickle has more than {_MOST_MEMO:,} memo entries")
        self.memo.append(self.top())

    def get(self, index: int) -> None:
        if index >= len(self.memo):
            raise self.refused(f"the pickle gets memo entry {index:,}, which is not set")
        self.stack.append(self.memo[index])

    def global_(self) -> None:
        module = self.line()
        self.name(module, self.line())

    def stack_global(self) -> None:
        module, name = self.pop_group(2)
        if type(module) is not str or type(name) is not str:
            raise self.refused(
                "the pickle names a global by something that is not a string", hint=_ADVICE
            )
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        if (module, name) not in _GLOBALS:
            raise self.refused(
                f"the pickle names '{module}.{name}', which is not part of a state dict",
                hint=_ADVICE,
            )
        self.stack.append(_GLOBALS[module, name])

    def persistent(self) -> None:
        value = self.pop()
        if type(value) is tuple and len(value) == 5 and value[0] == "storage":
            _, kind, key, location, count = value
            typed = isinstance(kind, Global) and kind.name in STORAGES
            strings = type(key) is str and type(location) is str
            if (typed or kind == Global(UNTYPED)) and strings and _natural(count):
                element = ELEMENT_TYPES[STORAGES[kind.name]] if typed else None
                self.stack.append(Storage(key, element, count))
                return
        raise self.refused("a persistent id of the pickle is not a storage")

    def reduce(self) -> None:
        function, arguments = self.pop_group(2)
        if not isinstance(function, Global) or function.name not in _CALLS:
            raise self.refused(f"the pickle calls {_kind(function)}", hint=_ADVICE)
        if type(arguments) is not tuple:
            raise self.refused(f"the pickle calls {_kind(function)} with no tuple of arguments")
        self.stack.append(_CALLS[function.name](self, arguments))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        # What `Module.state_dict` hangs on its dict as `_metadata`; nothing here needs it.
        if type(target) is not OrderedDict or not isinstance(state, dict):
            raise self.refused(
                f"the pickle uses the opcode BUILD on {_kind(target)}, "
                "which would set its state or call its __setstate__",
                hint=_ADVICE,
            )

    # What the globals that may be called stand for.

    def make_ordered_dict(self, arguments: tuple[Any, ...]) -> OrderedDict:
        if arguments:
            raise self.refused("the pickle gives collections.OrderedDict arguments")
        return OrderedDict()

    def make_size(self, arguments: tuple[Any, ...]) -> tuple[int, ...]:
        if len(arguments) != 1:
            raise self.refused("the pickle gives torch.Size the wrong arguments")
        return self.sizes(arguments[0], "size")

    def make_view(self, arguments: tuple[Any, ...]) -> View:
        if len(arguments) not in (6, 7):
            raise self.refused("the pickle gives _rebuild_tensor_v2 the wrong number of arguments")
        storage = arguments[0]
        if not isinstance(storage, Storage) or storage.element is None:
            raise self.refused(f"the pickle makes a tensor of {_kind(storage)}")
        return self.view(storage, storage.element, arguments[:6], arguments[6:])

    def make_typed_view(self, arguments: tuple[Any, ...]) -> View:
        if len(arguments) not in (7, 8):
            raise self.refused("the pickle gives _rebuild_tensor_v3 the wrong number of arguments")
        storage, dtype = arguments[0], arguments[6]
        if not isinstance(storage, Storage) or storage.element is not None:
            raise self.refused(f"the pickle makes a typed tensor of {_kind(storage)}")
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
        if name not in ELEMENT_TYPES:
            raise self.refused(f"the pickle makes a tensor with {_kind(dtype)} as element type")
        return self.view(storage, ELEMENT_TYPES[name], arguments[:6], arguments[7:])

    def view(
        self,
        storage: Storage,
        element: ElementType,
        arguments: tuple[Any, ...],
        metadata: tuple[Any, ...],
    ) -> View:
        _, offset, shape, stride, requires_grad, hooks = arguments
        if not _natural(offset):
            raise self.refused(f"the storage offset of a tensor is {_value(offset)}")
        shape, stride = self.sizes(shape, "shape"), self.sizes(stride, "stride")
        if len(shape) != len(stride):
            raise self.refused(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
        if type(requires_grad) is not bool or not (hooks is None or isinstance(hooks, dict)):
            raise self.refused("the pickle gives a tensor the wrong arguments")
        flags = metadata[0] if metadata else None
        if flags is not None and not isinstance(flags, dict):
            raise self.refused("the pickle gives a tensor the wrong metadata")
        return View(storage, element, offset, shape, stride, bool(flags))

    def sizes(self, value: Any, what: str) -> tuple[int, ...]:
        if type(value) is not tuple or len(value) > _MOST_DIMENSIONS:
            raise self.refused(
                f"the {what} of a tensor is no tuple of at most {_MOST_DIMENSIONS} numbers"
            )
        for number in value:
            if not _natural(number):
                raise self.refused(f"the {what} of a tensor contains {_value(number)}")
        return value

    def make_parameter(self, arguments: tuple[Any, ...]) -> View:
        if len(arguments) != 3 or not isinstance(arguments[0], View):
            raise self.refused("the pickle gives _rebuild_parameter the wrong arguments")
        return arguments[0]

    def make_parameter_with_state(self, arguments: tuple[Any, ...]) -> View:
        if len(arguments) != 4:
            raise self.refused("the pickle gives _rebuild_parameter_with_state the wrong arguments")
        return self.make_parameter(arguments[:3])


_CALLS: MappingProxyType[str, Callable[[_Machine, tuple[Any, ...]], Any]] = MappingProxyType(
    {
        "collections.OrderedDict": _Machine.make_ordered_dict,
        "torch.Size": _Machine.make_size,
        "torch._utils._rebuild_tensor_v2": _Machine.make_view,
        "torch._utils._rebuild_tensor_v3": _Machine.make_typed_view,
        "torch._utils._rebuild_parameter": _Machine.make_parameter,
        "torch._utils._rebuild_parameter_with_state": _Machine.make_parameter_with_state,
    }
)
# By module and name as they are written: joined, two spellings of one name would pass.
_GLOBALS = MappingProxyType(
    {
        tuple(name.rsplit(".", 1)): Global(name)
        for name in (*_CALLS, *STORAGES, UNTYPED, *(f"torch.{d}" for d in ELEMENT_TYPES))
    }
)


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _scalar(layout: struct.Struct) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.number(layout))


def _string(length: struct.Struct) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.text(machine.number(length)))


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.pop_group(count))


_OPCODES: MappingProxyType[int, Callable[[_Machine], None]] = MappingProxyType(
    {
        0x80: _Machine.proto,
        0x95: _Machine.frame,
        ord("."): _Machine.stop,
        ord("("): _Machine.mark,
        ord("N"): _constant(None),
        0x88: _constant(True),
        0x89: _constant(False),
        ord("J"): _scalar(_SIGNED_WORD),
        ord("K"): _scalar(_BYTE),
        ord("M"): _scalar(_SHORT),
        ord("G"): _scalar(_DOUBLE),
        0x8A: _Machine.long1,
        ord("X"): _string(_WORD),
        0x8C: _string(_BYTE),
        ord(")"): _constant(()),
        0x85: _tuple_of(1),
        0x86: _tuple_of(2),
        0x87: _tuple_of(3),
        ord("t"): _Machine.tuple_,
        ord("]"): lambda machine: machine.stack.append([]),
        ord("a"): _Machine.append,
        ord("e"): _Machine.appends,
        ord("}"): lambda machine: machine.stack.append({}),
        ord("s"): _Machine.setitem,
        ord("u"): _Machine.setitems,
        ord("q"): lambda machine: machine.put(machine.number(_BYTE)),
        ord("r"): lambda machine: machine.put(machine.number(_WORD)),
        0x94: lambda machine: machine.put(len(machine.memo)),
        ord("h"): lambda machine: machine.get(machine.number(_BYTE)),
        ord("j"): lambda machine: machine.get(machine.number(_WORD)),
        ord("c"): _Machine.global_,
        0x93: _Machine.stack_global,
        ord("Q"): _Machine.persistent,
        ord("R"): _Machine.reduce,
        ord("b"): _Machine.build,
    }
)


def _name_of(code: int) -> str:
    from pickletools import opcodes  # the table of all opcodes; slow to import

    found = (o.name for o in opcodes if o.code == chr(code))
    return next(found, None) or f"0x{code:02x}, which does not exist"


def _kind(value: Any) -> str:
    """What `value` is, in words; never its contents, which may be a nest without end."""
    if isinstance(value, Global):
        return value.name
    if isinstance(value, View):
        return "a tensor"
    if isinstance(value, Storage):
        return "a storage" if value.element else "an untyped storage"
    return f"a value of type {type(value).__name__}"


def _value(value: Any) -> str:
    return repr(value) if type(value) in (int, float, bool) else _kind(value)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
