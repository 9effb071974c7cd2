"""What holds on eight devices: run as a program, since a process has as many from its start.

Prints a JSON object: `{check: number}`, which test_devices.py reads.
"""

import json

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from subtune_jax import recipes  # noqa: E402
from subtune_jax.data.batches import padded  # noqa: E402
from subtune_jax.head import replace_head  # noqa: E402
from subtune_jax.losses import cross_entropy  # noqa: E402
from subtune_jax.selection import scores  # noqa: E402
from subtune_jax.selection.select import select  # noqa: E402
from subtune_jax.serving.mixed import Mixed  # noqa: E402
from subtune_jax.serving.trunk import plan  # noqa: E402
from subtune_jax.training.loop import epochs, fit  # noqa: E402
from subtune_jax.training.mesh import placement  # noqa: E402
from subtune_jax.training.optimizers import adam  # noqa: E402
from subtune_jax.training.phases import Phase  # noqa: E402
from subtune_jax.training.plan import make_plan  # noqa: E402
from subtune_jax.training.predict import evaluate  # noqa: E402
from subtune_jax.training.resume import first_snapshot  # noqa: E402
from subtune_jax.training.settings import Settings  # noqa: E402
from subtune_jax.training.suffix import cut  # noqa: E402
from tests import toy  # noqa: E402
from tests.serving import tasks  # noqa: E402
from tests.tuning.test_contract import TUNINGS, setup  # noqa: E402

KEY = jax.random.key(3)


def largest_difference(one, other) -> float:
    pairs = zip(*(jax.tree.leaves(tree) for tree in (one, other)), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def trained(network, phase, data, devices, **changes):
    place = placement(devices)
    return fit(
        network,
        phase,
        data,
        key=KEY,
        settings=Settings(place=place, batch_size=16, **changes),
    )


def tuned(name) -> float:
    """Returns how far 20 steps of a tuning on eight devices are from those on one."""
    network, phase = setup(name, toy.mlp(dtype=jnp.float64))
    phase = phase._replace(steps=20)
    one, eight = (trained(network, phase, toy.points(), n) for n in (1, 8))
    leaf = eight.network.params["two"]["kernel"]
    assert leaf.dtype == jnp.float64 and len(leaf.sharding.device_set) == 8
    assert largest_difference(one.network.params, network.params) > 1e-3
    return largest_difference(one.network.params, eight.network.params)


def wide_resnet():
    network = toy.small_resnet("batch")
    params, stats = (
        jax.tree.map(lambda leaf: leaf.astype(jnp.float64), part)
        for part in (network.params, network.stats)
    )
    return network._replace(params=params, stats=stats)


def suffix() -> float:
    """Returns how far 20 steps of a suffix on features on eight devices are from those of
    the whole network on one."""
    network, data = wide_resnet(), toy.images(32)
    part, (features,) = cut(network, 4, data)

    def run(network, data, devices):
        phase = Phase(select(network, {"g": ["block3_0", "head"]}), adam(1e-3), 20)
        tuned = trained(network, phase, data, devices, norm="tuned", cache_bytes=0)
        return tuned.network.params["block3_0"], tuned.network.stats["block3_0"]

    return largest_difference(run(network, data, 1), run(part, features, 8))


def batch_normed() -> float:
    """Returns the same of a network whose norms use statistics of the whole batch."""
    network = wide_resnet()
    phase = Phase(select(network, {"g": [".*"]}), adam(1e-3), 4)
    one, eight = (
        trained(network, phase, toy.images(32), n, norm="batch").network for n in (1, 8)
    )
    return largest_difference((one.params, one.stats), (eight.params, eight.stats))


def fast() -> float:
    """Returns the same of FAST: a stall of two updates, then everything, with a head that
    normalizes its features over the whole batch."""
    start = replace_head(toy.mlp(dtype=jnp.float64), 3, normalize="batch")
    params, stats = (
        jax.tree.map(lambda leaf: leaf.astype(jnp.float64), part)
        for part in (start.params, start.stats)
    )
    start = start._replace(params=params, stats=stats)
    phases = recipes.fast(start, adam(1e-3), 20, stall=2)
    one, eight = (trained(start, phases, toy.points(), n).network for n in (1, 8))
    return largest_difference((one.params, one.stats), (eight.params, eight.stats))


def programs_where_nothing_travels() -> int:
    """Returns how many steps are compiled for a run and one past a cached prefix, while
    no array moves to or from a device unasked: steps, evaluation and scores, from a base
    in NumPy."""
    network = toy.mlp()
    network = network._replace(params=jax.tree.map(np.asarray, network.params))
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 6)
    place, data = placement(8), toy.points()
    plan, cached = (
        make_plan(
            network,
            phase,
            data,
            key=KEY,
            settings=Settings(batch_size=16, place=place, cache_bytes=n),
        )
        for n in (0, 2**20)
    )
    compiled: list[str] = []  # `_cache_size` counts arguments, not programs, on a mesh
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **rest: compiled.append(f"{event} {fun_name}")
    )
    begin, begin_cached = first_snapshot(plan), first_snapshot(cached)
    batches = [place(padded(data.take(np.arange(16)), 16))]
    with jax.transfer_guard("disallow"):
        list(epochs(plan, begin))
        list(epochs(cached, begin_cached))
        evaluate(plan.network, data)
        for score in (
            scores.relative_gradient_norm,
            scores.signal_to_noise,
            scores.fisher,
        ):
            score(plan.network, batches, cross_entropy)
    names = ["backend_compile_duration jit(train_step)" in one for one in compiled]
    return sum(names)


def scored() -> float:
    """Returns how far scores of a batch on eight devices are from those on one."""
    network, batch = toy.mlp(dtype=jnp.float64), padded(toy.points(40), 40)
    place = placement(8)
    spread = network._replace(params=place.whole(network.params))
    found = []
    for score in (scores.relative_gradient_norm, scores.signal_to_noise, scores.fisher):
        one = score(network, [batch], cross_entropy)
        eight = score(spread, [place(batch)], cross_entropy)
        found += [abs(eight[name] / one[name] - 1) for name in one]
    return max(found)


def served() -> float:
    """Returns how far a trunk and a mixed batch on eight devices are from those on one."""
    network, deltas, x, _ = tasks.expected("bert", wide=True)
    x = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:4]]), x)
    place = placement(8)
    spread = network._replace(
        params=place.whole(network.params), stats=place.whole(network.stats)
    )
    names = [*deltas, *deltas][:16]
    results = []
    for one in (network, spread):
        mixed = Mixed(one)
        for name, delta in deltas.items():
            mixed.put(name, delta)
        results.append((plan(one, deltas)(x), mixed(x, names)))
    assert len(results[1][0]["low"].sharding.device_set) == 8
    return largest_difference(*results)


if __name__ == "__main__":
    checks = {name: tuned(name) for name in TUNINGS}
    checks["batch statistics"] = batch_normed()
    checks["suffix"] = suffix()
    checks["fast"] = fast()
    checks["programs"] = programs_where_nothing_travels()
    checks["scores"] = scored()
    checks["served"] = served()
    print(json.dumps(checks))
