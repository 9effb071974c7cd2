"""What a function computes that no program is traced from (an augmentation, multipliers):
its code and all that it reads, the same in every process, or a refusal."""

import enum
import importlib
import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from dis import get_instructions
from functools import partial, update_wrapper
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np

from subtune_jax.canonical import array
from subtune_jax.errors import InputError

PLAIN = str | int | float | complex | bytes | None | PurePath | range | slice | np.dtype
PLAIN |= enum.Enum
LIBRARIES = tuple(sysconfig.get_paths()[k] for k in ("stdlib", "purelib", "platlib"))
LIBRARIES += (f"{Path(__file__).parent}{os.sep}", "<frozen")
OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"}
OF_CLASSES |= {"__dataclass_params__", "__dataclass_fields__", "_abc_impl"}
OF_CLASSES |= {"__abstractmethods__", "__orig_bases__", "__parameters__"}


class Named:
    """A function that checkpoints and journals know by a name: see `named`."""

    def __init__(self, name: str, function: Callable):
        update_wrapper(self, function)
        self.name, self.function = name, function

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self.function(*args, **settings)


def named(name: str, function: Callable) -> Named:
    """Returns the function, known to checkpoints and journals by this name alone: for what
    cannot be read exactly, as in a notebook. Change the name when it computes something
    else. Raises `InputError` for an empty name."""
    if not isinstance(name, str) or not name or not callable(function):
        raise InputError(f"named takes a name and a function, got {name!r:.40}")
    return Named(name, function)


def described(value: Any, seen: dict[int, Any] | None = None) -> str:
    """Returns a description of a value; of a function, of its code and all that it reads.

    What libraries bring is known by its name. Raises `InputError` for what cannot be read
    exactly: code without a file, and the objects of libraries. seen: what is described
    already, by its id: it is told once, however many refer to it.
    """
    seen = {} if seen is None else seen
    kind, name = type(value), type(value).__name__
    ours = not _of_library(kind)
    objects = getattr(getattr(value, "dtype", None), "hasobject", False)
    if isinstance(value, Named):
        return f"named {value.name}"
    if isinstance(value, PLAIN) and not ours:
        return f"{name} {value!r}"
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not objects:
        return array(value)
    if isinstance(value, tuple | list | Mapping | set | frozenset):
        # A user's subclass has methods of its own.
        name = described(kind, seen) if ours else name
        items = value.items() if isinstance(value, Mapping) else value
        parts = [described(item, seen) for item in items]
        listed = parts if isinstance(value, tuple | list) else sorted(parts)
        return f"{name}({', '.join(listed)})"
    if id(value) in seen:
        return f"seen {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', name)}"
    return f"{name}({', '.join([described(one, seen) for one in _held(value)])})"


def _held(value: Any) -> tuple:
    """Returns what makes a value another than those of its name."""
    if inspect.isfunction(value):
        return _read_by(value)
    if inspect.ismethod(value):
        return value.__func__, value.__self__
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if hasattr(value, "__wrapped__") and _of_library(type(value)):  # by `jit`, `cache`
        return (value.__wrapped__,)
    named = np.ufunc | types.ModuleType | types.MemberDescriptorType
    if inspect.isroutine(value) or isinstance(value, named):
        return (value.__name__,)
    if isinstance(value, np.random.Generator):
        return (value.bit_generator.state,)
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, type):
        own = {n: v for n, v in vars(value).items() if n not in OF_CLASSES}
        if hasattr(value, "__dataclass_fields__") or hasattr(value, "_fields"):
            fields = getattr(value, "_fields", ())
            own = {
                n: v for n, v in own.items() if n not in fields and not _generated(v)
            }
        return () if _of_library(value) else (own, value.__bases__)
    if _of_library(type(value)) and not hasattr(value, "__dataclass_fields__"):
        raise _refused(f"a {type(value).__name__} cannot be read exactly")
    return type(value), value.__getstate__()


def _generated(value: Any) -> bool:
    """Returns whether Python made a method of a dataclass or a named tuple from its fields."""
    plain = inspect.unwrap(getattr(value, "__func__", value))
    return inspect.isfunction(plain) and plain.__code__.co_filename.startswith("<")


def _read_by(function: types.FunctionType) -> tuple:
    """Returns what a function computes with: its closure, and of a user's, its code,
    defaults, attributes and the globals that it names."""
    cells = tuple(map(_content, function.__closure__ or ()))
    if _of_library(function):
        return cells
    if not Path(function.__code__.co_filename).is_file():
        raise _refused(f"the source of {function.__qualname__!r} is in no file")
    codes = _codes(function.__code__, function.__doc__)
    names = sorted({name for code in codes for name in code[1]})
    read = {n: function.__globals__[n] for n in names if n in function.__globals__}
    for code in _all_codes(function.__code__):
        for step in get_instructions(code):
            top = str(step.argval).partition(".")[0]
            if step.opname == "IMPORT_NAME" and top not in read:
                read[top] = _imported(step.argval)
    for name, value in [*read.items()]:
        read |= _of_module(name, value, names)
    given = function.__defaults__, function.__kwdefaults__, function.__dict__
    return cells, given, codes, read


def _of_module(path: str, module: Any, names: list[str]) -> dict[str, Any]:
    """Returns what a function can read of a user's module by these names."""
    if not isinstance(module, types.ModuleType) or _of_library(module):
        return {}
    read = {f"{path}.{n}": getattr(module, n) for n in names if hasattr(module, n)}
    for name, value in [*read.items()] if path.count(".") < 4 else ():
        read |= _of_module(name, value, names)
    return read


def _imported(name: str) -> types.ModuleType:
    """Returns a module that a function imports when it is called."""
    try:
        importlib.import_module(name)
    except Exception as error:
        raise _refused(f"{name!r} cannot be imported ({error})") from None
    return sys.modules[name.partition(".")[0]]


def _all_codes(code: types.CodeType) -> list[types.CodeType]:
    """Returns the code of a function, and of functions inside it."""
    inside = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [code, *(one for c in inside for one in _all_codes(c))]


def _codes(code: types.CodeType, doc: str | None = None) -> list[tuple]:
    """Returns instructions, names and constants of code, and of functions inside it."""

    def of(one: types.CodeType) -> tuple:
        plain = [c for c in one.co_consts if not isinstance(c, types.CodeType)]
        consts = [c for c in plain if c != doc]
        return one.co_code, one.co_names, one.co_varnames, one.co_freevars, consts

    return [of(one) for one in _all_codes(code)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled later, or never
        return "empty"


def _refused(reason: str) -> InputError:
    return InputError(
        f"{reason}, and this run or search is known by what its functions read: give the "
        "function a name, st.named(name, function)"
    )


def _of_library(value: Any) -> bool:
    """Returns whether a function, class or module is of this library, of Python, or was
    installed: such code changes with its version alone."""
    home = sys.modules.get(getattr(value, "__module__", value.__name__))
    file = getattr(home, "__file__", None) or next(
        iter(getattr(home, "__path__", ())), None
    )
    if inspect.isfunction(value):
        file = value.__code__.co_filename
    if file is None:  # built in; or typed into a shell
        return home is not None and home.__name__ != "__main__"
    # Of `pip install --target` and `--user` a list of files lies beside the package. Taken
    # for a user's, all of jax would be described.
    roots = [root for root in Path(file).parents if str(root) in sys.path][:1]
    top = [Path(file).relative_to(root).parts[0].removesuffix(".py") for root in roots]
    listed = [
        f for r, t in zip(roots, top, strict=True) for f in r.glob(f"{t}-*/RECORD")
    ]
    return file.startswith(LIBRARIES) or bool(listed)
