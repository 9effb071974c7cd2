"""What a function computes that no program is traced from (an augmentation, multipliers):
its code and the values that it reads, the same in every process, or a refusal."""

import inspect
import sys
import types
from collections.abc import Callable
from dis import opmap
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import jax

from subtune_jax.canonical import of_library, plain
from subtune_jax.errors import InputError


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
    """Returns the text of a value; of a function, of its code and all that it reads.

    What libraries bring is known by its name. Raises `InputError` for what cannot be read
    exactly: a user's classes and their objects, and code without a file. seen: functions
    that are told already, by their id: once, however many refer to them.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Named):
        return f"named {value.name}"
    text = plain(value, partial(described, seen=seen))
    if text is not None:
        return text
    if id(value) in seen:
        return f"seen {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value
    kind = type(value).__name__
    name = getattr(value, "__qualname__", getattr(value, "__name__", kind))
    held = described(_held(value, name), seen)
    return f"{getattr(value, '__module__', '')}.{name} {held}"


def _held(value: Any, name: str) -> tuple:
    """Returns what makes a value another than those of its name."""
    if inspect.isfunction(value):
        own = [c for c in value.__closure__ or () if c != types.CellType()]  # not empty
        cells = tuple(cell.cell_contents for cell in own)
        return cells if of_library(value) else (cells, *_read_by(value, name))
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, jax.custom_jvp | jax.custom_vjp):  # it has rules besides
        raise _refused(f"{name!r} has a gradient of its own")
    if of_library(type(value)) and hasattr(value, "__wrapped__"):  # by `jit`, `cache`
        return (value.__wrapped__,)
    home = sys.modules.get(getattr(value, "__module__", None) or "")
    if sys.modules.get(name) is value or getattr(home, name, None) is value:
        if of_library(value):
            return ()  # a module, a class, or what else stands there under its name
    raise _refused(f"{name!r} cannot be read exactly")


def _read_by(function: types.FunctionType, name: str) -> tuple:
    """Returns the code, defaults, attributes and globals that a user's function reads."""
    if not Path(function.__code__.co_filename).is_file():
        raise _refused(f"the source of {name!r} is in no file")
    codes = _codes(function.__code__)
    if any(opmap["IMPORT_NAME"] in code.co_code[::2] for code in codes):
        raise _refused(f"{name!r} imports when it is called")
    names = sorted({name for code in codes for name in code.co_names})
    read = {n: function.__globals__[n] for n in names if n in function.__globals__}
    for path, module in [*read.items()]:
        if isinstance(module, types.ModuleType) and not of_library(module):
            del read[path]  # it is a user's: what can be read of it counts
            read |= {f"{path}.{n}": getattr(module, n, None) for n in names}
    body = [
        (c.co_code, c.co_names, c.co_varnames, c.co_freevars)
        + tuple(x for x in c.co_consts if x != function.__doc__ and x not in codes)
        for c in codes
    ]
    return body, function.__defaults__, function.__kwdefaults__, vars(function), read


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Returns the code of a function, and of functions inside it."""
    inside = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [code, *(one for c in inside for one in _codes(c))]


def _refused(reason: str) -> InputError:
    return InputError(
        f"{reason}, and this run or search is known by what its functions read: give the "
        "function a name, st.named(name, function)"
    )
