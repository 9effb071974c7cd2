"""What a function is: its code and all that it reads, described the same in every process.

A compiled program and a checkpoint both belong to the functions that they were made
with. A function that is known by its name alone would answer for another one after its
body, or a number that it reads, has changed.
"""

import dataclasses
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import types
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jax
import numpy as np

from subtune_jax import tree

PLAIN = frozenset((str, int, float, bool, type(None), bytes))
OWN = Path(__file__).parent
INSTALLED = tuple(sysconfig.get_paths()[k] for k in ("stdlib", "purelib", "platlib"))


def fingerprint(*values: Any) -> str:
    """Returns a SHA-256 of the descriptions of values, as 64 hex digits."""
    return hashlib.sha256(said(values).encode()).hexdigest()


def said(value: Any, within: tuple[int, ...] = ()) -> str:
    """Returns a description of a value that is equal in every process.

    Arrays: a fingerprint. Functions: name, code, defaults, closure and the globals they
    read; of installed libraries and this one, name, defaults and closure, since their
    code changes with their version alone. Objects: attributes, or `repr` without
    addresses.
    """
    if type(value) in PLAIN:  # nothing is held by it
        return repr(value)
    if id(value) in within:
        return "itself"
    within, kind = (*within, id(value)), type(value)

    def inner(one: Any) -> str:
        return repr(one) if type(one) in PLAIN else said(one, within)

    if kind is tuple or kind is list:  # most of the rest, and `isinstance` is slow
        return f"[{', '.join([inner(one) for one in value])}]"
    if kind is not dict and isinstance(value, np.ndarray | jax.Array):
        return inner(value.tolist()) if _holds_objects(value) else _digest(value)
    if isinstance(value, Mapping):
        items = sorted(f"{inner(k)}: {inner(v)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, types.ModuleType):
        return f"{value.__name__} {getattr(value, '__version__', '')}"
    plain = _unwrapped(value)
    held = _held(plain)
    name = _name(plain, held)
    return name if held is None else f"{name}{inner(held)}"


def _unwrapped(value: Any) -> Any:
    """Returns the function that `jax.jit` or `functools.cache` made an object of; a function
    itself is whole: what it wraps is among what it closes over."""
    while not inspect.isfunction(value) and callable(value):
        if not hasattr(value, "__wrapped__"):
            break
        value = value.__wrapped__
    return value


def _held(value: Any) -> list | Mapping | None:
    """Returns what makes a value another than those of its name; `None` if nothing."""
    if isinstance(value, type):
        return None
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if inspect.isfunction(value):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [_code(value), value.__defaults__, value.__kwdefaults__, cells]
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    plain = type(value).__repr__ is object.__repr__
    return getattr(value, "__dict__", None) if plain else None


def _code(function: types.FunctionType) -> list | None:
    """Returns what a user's function does and the globals it reads; `None` where a name
    and a version say it all."""
    # An installed function is known by its name and its package's version; the code of a
    # user's may have changed under the same name, and a lambda has no name to be known by.
    file = function.__code__.co_filename
    if function.__name__ != "<lambda>" and _installed(file, tuple(sys.path)):
        return None
    codes = _codes(function.__code__)
    names = sorted({name for code in codes for name in code.co_names})
    read = {n: function.__globals__[n] for n in names if n in function.__globals__}
    for name, value in [*read.items()]:
        read |= _of_module(name, value, names)
    return [[_body(code) for code in codes], names, read]


def _of_module(path: str, module: Any, names: list[str]) -> dict[str, Any]:
    """Returns what a function can read of a user's module by these names."""
    if not isinstance(module, types.ModuleType):
        return {}
    file = getattr(module, "__file__", None) or "<frozen"
    if _installed(file, tuple(sys.path)):
        return {}
    values: dict[str, Any] = {}
    for name in names:
        if hasattr(module, name) and path.count(".") < 4:
            value = getattr(module, name)
            values |= {f"{path}.{name}": value}
            values |= _of_module(f"{path}.{name}", value, names)
    return values


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Returns a code object and those of the functions inside it."""
    inside = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [code, *(one for c in inside for one in _codes(c))]


def _body(code: types.CodeType) -> tuple:
    plain = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    return code.co_code.hex(), plain


@lru_cache(4096)
def _installed(file: str, path: tuple[str, ...]) -> bool:
    """Returns whether a file is of this library, of Python, or of what was installed."""
    if file.startswith((f"{OWN}{os.sep}", "<frozen", *INSTALLED)):
        return True
    return not _elsewhere(path).isdisjoint([file, *map(str, Path(file).parents)])


@lru_cache(8)
def _elsewhere(path: tuple[str, ...]) -> frozenset[str]:
    """Returns the packages and modules that were installed into other folders of
    `sys.path` than this Python's own."""
    # `pip install --user` and `--target`, PYTHONPATH: taken for a user's code, all of jax
    # is described, which takes minutes. A user's own file may lie in the same folder, so
    # the lists of what was installed count, and not the folder. A checkout that was built
    # has a list too, of its sources; what pip copied has a RECORD.
    folders = [folder for folder in path if folder and folder not in INSTALLED]
    return frozenset(
        str(distribution.locate_file(file.parts[0]))
        for distribution in distributions(path=folders)
        if distribution.read_text("RECORD")
        for file in distribution.files or ()
        if file.parts[0] != ".."
    )


def _name(value: Any, held: Any) -> str:
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if held is not None:
        return type(value).__qualname__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled later, or never
        return "empty"


def _holds_objects(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.hasobject


def _digest(array: Any) -> str:
    keys = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return tree.fingerprint({"": jax.random.key_data(array) if keys else array})
