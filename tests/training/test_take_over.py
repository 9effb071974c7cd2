"""What a phase takes over from another tuning, and what rests meanwhile."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import programs, tree
from subtune_jax.errors import InputError
from subtune_jax.labels import trainable_half
from subtune_jax.selection.select import select
from subtune_jax.training.loop import epochs, fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.fixed_mask import fixed_mask, largest_changes
from subtune_jax.tuning.method import Parts, Tuning, leaf_groups, no_penalty
from subtune_jax.tuning.rescaled import rescaled
from subtune_jax.tuning.subset import subset
from tests import toy

KEY = jax.random.key(0)


def gate_init(params, labels, key=None):
    half = trainable_half(params, labels)
    both = {"change": jnp.zeros_like, "gate": jnp.ones_like}
    return Parts(jax.tree.map(lambda w: {n: f(w) for n, f in both.items()}, half))


def gate_materialize(trainable, fixed, params, key=None):
    """w_0 + gate * change."""
    values = tree.flatten(trainable)

    def whole(path, leaf):
        change = values.get(f"{path}/change")
        return leaf if change is None else leaf + values[f"{path}/gate"] * change

    return tree.map_with_path(whole, params)


GATES = Tuning(gate_init, leaf_groups, gate_materialize, no_penalty)


def two_phases(network, k=11):
    labels = select(network, {"body": ["one", "two"]})
    gates = Phase(labels, adam(1e-2), 6, GATES, keeps=False)
    return [gates, Phase(labels, adam(1e-2), 6, largest_changes(k))]


def test_a_mask_of_the_largest_changes_takes_over_from_gates():
    network = toy.mlp()
    run = partial(fit, network, data=toy.points(), settings=Settings(batch_size=16))
    counts = []
    for seed in (0, 1):
        key = jax.random.key(seed)
        gated = run(two_phases(network)[:1][0]._replace(keeps=True), key=key).network
        masked = run(two_phases(network), key=key)
        base, after = (tree.flatten(n.params) for n in (network, masked.network))
        changed = {p: np.asarray(after[p] != base[p]).ravel() for p in base}
        assert sum(c.sum() for c in changed.values()) == 11
        sizes = {
            p: np.abs(np.ravel(tree.flatten(gated.params)[p] - base[p])) for p in base
        }
        least = min(sizes[p][c].min() for p, c in changed.items() if c.any())
        assert least >= max(sizes[p][~c].max(initial=0) for p, c in changed.items())
        counts.append({p: int(c.sum()) for p, c in changed.items()})
        assert tree.count(masked.trainable) == 11
    assert counts[0] != counts[1]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 6, 9])
def test_stopped_in_either_phase_it_ends_bit_for_bit_the_same(steps, tmp_path):
    network, calls = toy.mlp(), []
    run = partial(fit, network, two_phases(network), toy.points(), key=KEY)
    run = partial(run, settings=Settings(batch_size=16), checkpoint_seconds=0)
    whole = run()

    class Stop(Exception):
        pass

    from subtune_jax.training import checkpoints

    save = checkpoints.save

    def stopping(folder, saved):
        save(folder, saved)
        if saved.step == steps and not calls:
            calls.append(1)
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(checkpoints, "save", stopping)
        run(checkpoint=tmp_path)
    again = run(checkpoint=tmp_path)
    assert tree.fingerprint(again.network.params) == tree.fingerprint(
        whole.network.params
    )
    assert tree.fingerprint(again.trainable) == tree.fingerprint(whole.trainable)


def test_epochs_of_a_phase_that_does_not_keep_are_not_scored():
    network = toy.mlp()
    result = fit(
        network,
        two_phases(network),
        toy.points(),
        key=KEY,
        settings=Settings(batch_size=16),
        validate=lambda net: -1.0,
    )
    assert (len(result.scores), result.epoch) == (2, 3)


def test_a_mask_of_changes_needs_a_phase_before_it_and_enough_elements():
    network = toy.mlp()
    first, second = two_phases(network, k=10_000)
    with pytest.raises(InputError, match="needs a phase before it"):
        fit(network, second, toy.points(), key=KEY)
    with pytest.raises(InputError, match="asks for 10000 of 72 elements"):
        fit(
            network,
            [first, second],
            toy.points(),
            key=KEY,
            settings=Settings(batch_size=16),
        )


RESTING = {
    "subset": subset(),
    "rescaled": rescaled(free=()),
    "gates": GATES,
    "fixed_mask": fixed_mask({"two/kernel": np.arange(5)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESTING)
def test_what_rests_trains_on_from_its_own_values(name):
    network, tuning = toy.mlp(), RESTING[name]
    both = select(network, {"b": ["two/kernel", "head"]})
    head = select(network, {"b": ["head"]})
    phases = [Phase(labels, adam(1e-2), 3, tuning) for labels in (both, head, both)]
    points = list(
        epochs(
            make_plan(
                network, phases, toy.points(), key=KEY, settings=Settings(batch_size=16)
            )
        )
    )
    first, rested, last = (tree.flatten(p.trainable) for p in points)
    own = [path for path in first if path.startswith("two/kernel")]
    assert own and first.keys() == rested.keys() == last.keys()
    for path in own:
        np.testing.assert_array_equal(first[path], rested[path])
        # One step of Adam moves by the rate at most: three from where it rested.
        assert 0 < np.abs(np.asarray(last[path] - rested[path])).max() < 0.04
    np.testing.assert_array_equal(
        points[0].network.params["two"]["kernel"],
        points[1].network.params["two"]["kernel"],
    )


def test_forty_masks_of_one_size_are_one_program(uncrowded):
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel"]})
    programs.forget()
    for i in range(20):
        mask = fixed_mask({"two/kernel": np.array([i, i + 5, i + 9])})
        fit(network, Phase(labels, adam(1e-2), 2, mask), toy.points(), key=KEY)
    assert len(programs._programs) == 2  # the features below, and the step


def test_a_leaf_whose_values_change_their_form_is_taken_over_or_refused():
    network = toy.mlp()
    apart = select(network, {"body": ["two"], "head": ["head"]})
    together = select(network, {"all": ["two", "head"]})
    scaled = [Phase(labels, adam(1e-2), 3, rescaled()) for labels in (apart, together)]
    with pytest.raises(InputError, match="phase 1 changes the tuning"):
        fit(network, scaled, toy.points(), key=KEY, settings=Settings(batch_size=16))
    one = fixed_mask({"two/kernel": np.arange(5)})
    both = fixed_mask({"two/kernel": np.arange(5), "head/kernel": np.arange(3)})
    for tunings in ((one, both), (both, one)):
        phases = [Phase(apart, adam(1e-2), 3, tuning) for tuning in tunings]
        first = fit(
            network, phases[:1], toy.points(), key=KEY, settings=Settings(batch_size=16)
        )
        made = fit(
            network, phases, toy.points(), key=KEY, settings=Settings(batch_size=16)
        )
        base, before, after = (
            np.ravel(n.params["two"]["kernel"])
            for n in (network, first.network, made.network)
        )
        assert np.all(after[:5] != base[:5]) and np.all(after[5:] == base[5:])
        assert np.abs(after[:5] - before[:5]).max() < 0.05  # it went on from there


def test_a_learnt_mask_follows_a_given_one_and_trains_on():
    network = toy.mlp()
    labels = select(network, {"g": ["two"]})
    learnt = largest_changes(4, free=())
    rules = (adam(1e-2), adam(1e-2), adam(1e-3))
    tunings = (fixed_mask({"two/kernel": np.arange(9)}), learnt, learnt)
    phases = [
        Phase(labels, rule, 3, tuning)
        for rule, tuning in zip(rules, tunings, strict=True)
    ]
    made = fit(network, phases, toy.points(), key=KEY, settings=Settings(batch_size=16))
    moved = sum(
        int(
            np.sum(
                np.asarray(made.network.params["two"][n]) != network.params["two"][n]
            )
        )
        for n in ("kernel", "bias")
    )
    assert moved == 4
