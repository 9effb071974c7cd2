"""Errors a person reads: one sentence that says what was wrong and what is valid."""

import difflib
import importlib
from collections.abc import Iterable
from numbers import Real
from types import ModuleType


class InputError(ValueError):
    """Something the caller gave cannot be used; the message is one sentence."""


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """Returns the `n` choices most like `name`, best first (never an empty list)."""
    choices = list(dict.fromkeys(choices))
    close = difflib.get_close_matches(name, choices, n=n, cutoff=0.4)
    return close or choices[:n]


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """Returns the error for a name that is not one of a closed set of choices."""
    choices = list(choices)
    hint = f"; did you mean {nearest(name, choices, 1)[0]!r}?" if choices else ""
    return InputError(
        f"unknown {kind} {name!r}: expected one of {', '.join(choices)}{hint}"
    )


def require_positive(**values: float) -> None:
    """Raises `InputError` naming the first value that is not a positive finite number."""
    for name, value in values.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise InputError(f"{name} must be a positive number, got {value!r}")


def require_type(expected: type, **values: object) -> None:
    """Raises `InputError` naming the first value that is not of the expected type."""
    for name, value in values.items():
        if not isinstance(value, expected):
            raise InputError(
                f"{name} must be a {expected.__name__}, got {type(value).__name__}"
            )


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
