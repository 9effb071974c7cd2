"""From what a person names (units, module kinds, path patterns) to labels."""

import re
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from subtune_jax import tree
from subtune_jax.errors import InputError, listed, nearest
from subtune_jax.labels import FROZEN, trainable_half
from subtune_jax.network import Labels, Network, Params, require_network


def select(network: Network, selection: Mapping[str, Sequence[str]]) -> Labels:
    """Returns the labels of a selection: a group name at every leaf, else `frozen`.

    `selection` maps a group name to entries. An entry is the name of a unit
    (`block1`; `fine:block1_0` to name its table as well) or a path pattern: a regular
    expression that matches a run of whole path components, so `norm1` and
    `block1_.*/conv1` match but `norm` does not match `norm1`. Alternatives, `block1|head`,
    are entries of their own. The first group that matches a leaf has it.

    select(net, {"body": ["block1"], "head": ["head"]})
    # {"stem": {"kernel": "body"}, "block2_0": {...: "frozen"}, "head": {...: "head"}}

    Raises `InputError` when an entry matches no leaf (with the nearest units and
    paths), or none that an earlier group has not taken.
    """
    require_network(network)
    if not isinstance(selection, Mapping):
        raise InputError("a selection is a dict of group names to lists of selectors")
    groups: dict[str, str] = {}
    for group, entries in selection.items():
        if not entries:
            raise InputError(f"group {group!r} selects nothing: its list is empty")
        if group == FROZEN or "@" in group:
            raise InputError(
                f"{group!r} cannot name a group: it has a meaning of its own"
            )
        for entry in (entries,) if isinstance(entries, str) else entries:
            if not isinstance(entry, str):
                raise InputError(
                    f"a selector is a string, got {type(entry).__name__} in group {group!r}"
                )
            matched = match(network, entry)
            if set(matched) <= {n for n, g in groups.items() if g != group}:
                raise InputError(
                    f"selector {entry!r} of group {group!r} matches only leaves that "
                    f"group {groups[matched[0]]!r} already has"
                )
            for name in matched:
                groups.setdefault(name, group)
    return tree.map_with_path(lambda name, _: groups.get(name, FROZEN), network.params)


def match(network: Network, entry: str) -> list[str]:
    """Returns the paths of the leaves that one entry of a selection matches (>= 1), those
    of integers left out.

    Of alternatives, `block1|head`, each is a unit or a pattern, and matches on its own.
    """
    require_network(network)
    leaves = tree.flatten(network.params)
    names = list(leaves)
    alternatives = _alternatives(entry)
    if len(alternatives) > 1 and not unit_patterns(network, entry):
        held = {name for one in alternatives for name in match(network, one)}
        return [name for name in names if name in held]
    patterns = unit_patterns(network, entry) or (entry,)
    matched = [n for n in names if any(_matches(p, n) for p in patterns)]
    if not matched:
        units = [unit for table in network.units.values() for unit in table]
        if unit_patterns(network, entry):
            raise InputError(
                f"the patterns of unit {entry!r} match no path: they are "
                f"{', '.join(unit_patterns(network, entry))}"
            )
        parts = [part for name in names for part in name.split("/")]
        raise InputError(
            f"selector {entry!r} matches no unit and no path: nearest units are "
            f"{', '.join(nearest(entry, units)) or 'none'}; nearest paths are "
            f"{', '.join(nearest(entry, names))}; nearest parts of paths are "
            f"{', '.join(nearest(entry, parts))}"
        )
    # Tables of integers are parameters of some models, and nothing can train them.
    inexact = [n for n in matched if jnp.issubdtype(leaves[n].dtype, jnp.inexact)]
    if not inexact:
        kinds = listed(f"{name} {leaves[name].dtype}" for name in matched)
        raise InputError(
            f"selector {entry!r} matches only {kinds}: only real floating-point parameters "
            "can be trained"
        )
    return inexact


def unit_patterns(network: Network, name: str) -> tuple[str, ...]:
    """Returns the path patterns of a unit, `unit` or `table:unit`; () if there is none."""
    require_network(network)
    only, _, unit = name.rpartition(":")
    for table, units in network.units.items():
        if only in ("", table) and unit in units:
            return units[unit]
    return ()


def is_matched(network: Network, patterns: Sequence[str]) -> bool:
    """Returns whether any of these path patterns matches a leaf of the network."""
    names = tree.flatten(network.params)
    return any(_matches(pattern, name) for pattern in patterns for name in names)


def _alternatives(entry: str) -> list[str]:
    """Returns the parts between the bars of a pattern that are in no bracket."""
    parts, depth, last = [""], 0, ""
    for character in entry:
        escaped = last == "\\"
        depth += 0 if escaped else (character in "([{") - (character in ")]}")
        if character == "|" and not depth and not escaped:
            parts.append("")
        else:
            parts[-1] += character
        last = "" if escaped else character
    return parts


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(rf"(?:^|/)(?:{pattern})(?:/|$)", name) is not None
    except re.error as error:
        raise InputError(
            f"selector {pattern!r} is not a regular expression: {error}"
        ) from None


def coverage(network: Network, labels: Labels) -> list[tuple[str, str, int, int]]:
    """Returns rows (stage, group, leaves, numbers): what a selection selects, to print."""
    _require_labels(network, labels)
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    sizes = tree.flatten(network.params)
    for name, group in tree.flatten(labels).items():
        row = (name.partition("/")[0], group)
        leaves, numbers = rows.get(row, (0, 0))
        rows[row] = leaves + 1, numbers + sizes[name].size
    order = [stage.name for stage in network.stages]
    return sorted(
        ((*row, *counts) for row, counts in rows.items()),
        key=lambda row: (order.index(row[0]), row[1] == FROZEN, row[1]),
    )


def count_trainable(network: Network, labels: Labels) -> int:
    """Returns how many parameters of a network are not frozen."""
    _require_labels(network, labels)
    return tree.count(trainable_half(network.params, labels))


def _require_labels(network: Network, labels: Labels) -> None:
    require_network(network)
    if not tree.alike(labels, network.params):
        raise InputError(
            "labels are a tree like the parameters: select(network, {group: [selectors]}) "
            "returns them"
        )


def assert_frozen(before: Params, after: Params, labels: Labels) -> None:
    """Raises `AssertionError` naming the frozen leaves that are not bit-identical.

    before, after: parameters (batch statistics move where norms use those of the batch).
    Raises `InputError` for what are not parameters of these labels.
    """
    if not (tree.alike(before, labels) and tree.alike(after, labels)):
        raise InputError(
            "assert_frozen compares parameters, as network.params, by labels of theirs"
        )
    old, new = tree.flatten(before), tree.flatten(after)
    moved: Iterable[str] = [
        name
        for name, label in tree.flatten(labels).items()
        if label == FROZEN
        and np.asarray(old[name]).tobytes() != np.asarray(new[name]).tobytes()
    ]
    if moved:
        raise AssertionError(f"frozen leaves moved: {', '.join(moved)}")
