"""Errors a person reads: one sentence that says what was wrong and what is valid."""

import difflib
import importlib
import inspect
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import PurePath
from types import ModuleType


class InputError(ValueError):
    """Something the caller gave cannot be used; the message is one sentence."""


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Returns the `n` choices most like `name`, best first (never an empty list)."""
    choices = list(dict.fromkeys(choices))
    close = difflib.get_close_matches(name, choices, n=n, cutoff=0.4)
    return close or choices[:n]


def unknown(kind: str, name: object, choices: Iterable[str]) -> InputError:
    """Returns the error for a name that is not one of a closed set of choices."""
    choices = list(choices)
    if not choices:
        return InputError(f"unknown {kind} {name!r}: there is none here")
    near = nearest(name, choices, 1)[0] if isinstance(name, str) else None
    hint = f"; did you mean {near!r}?" if near else ""
    return InputError(
        f"unknown {kind} {name!r}: expected one of {listed(choices)}{hint}"
    )


def listed(names: Iterable[str], most: int = 10) -> str:
    """Returns names for a sentence, the first ten and how many more there are."""
    names = list(names)
    more = len(names) - most
    if more <= 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {more} more"


def require_positive(**values: float) -> None:
    """Raises `InputError` naming the first value that is not a positive finite number."""
    for name, value in values.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise InputError(f"{name} must be a positive number, got {value!r}")


def require_whole(**values: int) -> None:
    """Raises `InputError` naming the first value that is not an integer from 1 up."""
    for name, value in values.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < 1:
            raise InputError(f"{name} must be a positive whole number, got {value!r}")


def require_function(arguments: int, **functions: object) -> None:
    """Raises `InputError` naming the first value that cannot be called with so many
    arguments."""
    for name, function in functions.items():
        kind = type(function).__name__
        if not callable(function):
            raise InputError(
                f"{name} must be a function of {arguments} arguments, got {kind}"
            )
        try:
            inspect.signature(function).bind(*[None] * arguments)
        except TypeError as error:
            raise InputError(
                f"{name} must be a function of {arguments} arguments: {error}"
            ) from None
        except ValueError:  # a builtin that does not say what it takes
            continue


def require_type(expected: type, **values: object) -> None:
    """Raises `InputError` naming the first value that is not of the expected type."""
    for name, value in values.items():
        if not isinstance(value, expected):
            raise InputError(
                f"{name} must be a {expected.__name__}, got {type(value).__name__}"
            )


def require_names(**values: object) -> None:
    """Raises `InputError` naming the first value that is no list of different texts."""
    for name, value in values.items():
        texts = isinstance(value, list | tuple) and all(
            isinstance(v, str) for v in value
        )
        if not texts or len(set(value)) < len(value):  # type: ignore[arg-type,call-overload]
            raise InputError(
                f"{name} must be a list of different names, got {value!r:.60}"
            )


def require_path(**values: object) -> None:
    """Raises `InputError` naming the first value that names no file or folder."""
    for name, value in values.items():
        if not isinstance(value, str | PurePath):
            raise InputError(f"{name} must be a path, got {type(value).__name__}")


def require_package(module: str, purpose: str) -> ModuleType:
    """Returns a module of the extra `experiments`; raises `InputError` where it is not
    installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise InputError(
            f"{purpose} needs {module.partition('.')[0]}: pip install "
            "'subtune-jax[experiments]'"
        ) from None
