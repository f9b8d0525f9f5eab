"""Turn kernels into object files by numba, and load and call these by llvmlite alone.

numba's own cache needs all of numba to load what it kept, half a second at the start of every process. An
object file needs the linker of llvmlite, a twentieth of a second. It is called as numba calls compiled code:
with pointers to the result and to an error, then each number, and each array as eight numbers or more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

# Sums may be reordered, so that they are vectorized; NaN and infinity keep their meaning.
REORDERED = frozenset({"contract", "reassoc", "nsz", "arcp"})
IN_ORDER = frozenset({"contract", "nsz"})
_NUMBERS = {"float64": ctypes.c_double, "float32": ctypes.c_float, "int64": ctypes.c_int64}
_IN_LLVM = {ctypes.c_double: "double", ctypes.c_float: "float", ctypes.c_int64: "i64"}
# Without counts of references: kernels make no arrays. No wrappers for Python: they are called as above.
_OPTIONS = {"nogil": True, "_nrt": False, "no_cfunc_wrapper": True, "no_cpython_wrapper": True}
_FROM_OUTSIDE = re.compile(r"llvm\..*|log|log1p|logf|sqrt|sqrtf|memset|memcpy|memmove")
_parts: dict[Callable[..., Any], frozenset[str]] = {}
_dispatchers: dict[Callable[..., Any], Any] = {}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function as a part of kernels: compiled into each that calls it, its sums reordered."""
    _parts[function] = REORDERED
    return function


def compiled_in_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function as a part of kernels whose arithmetic is kept in order."""
    _parts[function] = IN_ORDER
    return function


@dataclass(frozen=True)
class Signature:
    """Say what a kernel takes and returns.

    Attributes:
        text: as numba writes it, of float64, float32 and int64 and contiguous arrays of them.
    """

    text: str

    @property
    def arguments(self) -> list[tuple[str, int]]:
        """Return the type and the number of dimensions of each argument, 0 for a number."""
        inside = self.text[self.text.index("(") + 1 : -1]
        found = re.findall(r"(\w+)(\[[^\]]*\])?", inside)
        return [(name, dims.count(":") - 1 if dims else 0) for name, dims in found]

    @property
    def c_types(self) -> list[Any]:
        """Return the types that the compiled function is called with."""
        types: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
        for name, dims in self.arguments:
            if dims == 0:
                types.append(_NUMBERS[name])
                continue
            types += [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
            types += [ctypes.c_int64] * (2 * dims)
        return types


def make_object(function: Callable[..., Any], signature: Signature, symbol: str) -> bytes | None:
    """Compile a kernel by numba and return its object file, in which it has the name `symbol`.

    Returns:
        None where this numba compiles it in another way than expected.
    """
    llvm: Any = importlib.import_module("llvmlite.binding")
    with no_garbage_collection():
        dispatcher = _dispatcher(function, signature.text)
        module = llvm.parse_assembly(dispatcher.inspect_llvm(dispatcher.signatures[0]))
        own = [
            found
            for found in module.functions
            if not found.is_declaration and str(found.linkage) in ("Linkage.external", "0")
        ]
        outside = [found.name for found in module.functions if found.is_declaration]
        if len(own) != 1 or not all(_FROM_OUTSIDE.fullmatch(name) for name in outside):
            return None
        if not _is_called_as_expected([str(argument.type) for argument in own[0].arguments], signature):
            return None
        own[0].name = symbol
        return bytes(_target_machine().emit_object(module))


def load(code: bytes, signature: Signature, symbol: str) -> Callable[..., Any]:
    """Load an object file that `make_object` made on a processor like this one, and return its kernel.

    Raises:
        RuntimeError: by llvmlite, it is no object file.
    """
    llvm: Any = importlib.import_module("llvmlite.binding")
    machine = _target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(symbol)
    call = ctypes.CFUNCTYPE(ctypes.c_int32, *signature.c_types)(address)  # it leaves the interpreter's lock
    arguments = [(np.dtype(name), dims) for name, dims in signature.arguments]
    returns = signature.text.startswith("float64(")

    def kernel(*values: Any) -> float | None:
        result, error = ctypes.c_double(), ctypes.c_void_p()
        flat: list[Any] = [ctypes.addressof(result), ctypes.addressof(error)]
        for value, (dtype, dims) in zip(values, arguments, strict=True):
            if dims == 0:
                flat.append(float(value) if dtype.kind == "f" else int(value))
                continue
            if value.dtype != dtype or value.ndim != dims or not value.flags.c_contiguous:
                raise TypeError(f"{symbol} takes a contiguous {dtype} array of {dims} dimensions")
            flat += (None, None, value.size, value.itemsize, value.__array_interface__["data"][0])
            flat += (*value.shape, *value.strides)
        if call(*flat) != 0:
            raise RuntimeError(f"{symbol} failed")
        return result.value if returns else None

    kernel.engine = engine  # type: ignore[attr-defined]  # its memory is that of the code
    return kernel


def make_callable(function: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    """Compile a kernel by numba for this process."""
    with no_garbage_collection():
        compiled: Callable[..., Any] = _dispatcher(function, signature.text, no_cpython_wrapper=False)
    return compiled


def processor() -> str:
    """Name the processor that objects are made for, with all that it can do."""
    llvm: Any = importlib.import_module("llvmlite.binding")
    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()} {llvm.llvm_version_info}"


def _dispatcher(function: Callable[..., Any], *signature: str, **options: bool) -> Any:
    """Hand a function to numba, with the parts that it calls."""
    numba: Any = importlib.import_module("numba")
    fastmath = set(_parts.get(function, REORDERED))
    return numba.njit(*signature, error_model="numpy", fastmath=fastmath, **_OPTIONS | options)(
        FunctionType(
            function.__code__,
            {**function.__globals__, **{name: _of_part(called) for name, called in _called(function)}},
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
    )


def _called(function: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if isinstance(called, FunctionType) and called in _parts:
            yield name, called


def _of_part(function: Callable[..., Any]) -> Any:
    if function not in _dispatchers:
        _dispatchers[function] = _dispatcher(function)
    return _dispatchers[function]


def _is_called_as_expected(types: list[str], signature: Signature) -> bool:
    expected = signature.c_types
    return len(types) == len(expected) and all(
        found == _IN_LLVM.get(c_type) or (c_type is ctypes.c_void_p and (found == "ptr" or found[-1] == "*"))
        for found, c_type in zip(types, expected, strict=True)
    )


def _target_machine() -> Any:
    llvm: Any = importlib.import_module("llvmlite.binding")
    with contextlib.suppress(RuntimeError):  # newer ones need no initializing, and refuse it
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(),
        opt=3, reloc="default", codemodel="jitdefault", jit=True,
    )  # fmt: skip


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Do not look for garbage while a compiler makes millions of objects, a tenth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
