"""From a delta's file to a network that predicts."""

from inspect import signature
from pathlib import Path

from subtune_jax.deltas.delta import Delta
from subtune_jax.deltas.file import load
from subtune_jax.deltas.swap import apply
from subtune_jax.errors import InputError
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network


def open_task(
    delta: Delta | str | Path, base: Network | str | Path | None = None
) -> Network:
    """Returns the network of a task, from its delta or the file of one.

    base: the network that it was tuned from, or its folder or hub id; default: what the
    delta names. Raises `InputError` for another base, and where none is named.
    """
    delta = delta if isinstance(delta, Delta) else load(delta)
    return apply(open_base(delta, base), delta)[0]


def open_base(delta: Delta, base: Network | str | Path | None = None) -> Network:
    """Returns the network that a delta belongs to, which is not checked; base and errors as
    `open_task`."""
    named = delta.about["base"]
    if base is None and not named["name"]:
        raise InputError(
            "the delta does not say where its base is: give base= (in a shell --base), the "
            "network that it was tuned from"
        )
    if base is not None and not isinstance(base, str | Path):
        return base
    unread = named["options"].keys() - signature(load_pretrained).parameters
    if unread:
        raise InputError(
            f"the base was loaded with {min(unread)!r}, which this version does not know: "
            "install a newer subtune-jax"
        )
    return load_pretrained(base or named["name"], **named["options"])
