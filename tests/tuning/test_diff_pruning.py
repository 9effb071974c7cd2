"""Diff pruning by hand: gradients, penalties, what takes over, and exactly k elements."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from subtune_jax import tree
from subtune_jax.errors import InputError
from subtune_jax.labels import FROZEN
from subtune_jax.losses import cross_entropy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.recipes import diff_pruning as recipe
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam, ascent
from subtune_jax.training.phases import Phase, Settings
from subtune_jax.training.state import start
from subtune_jax.tuning.diff_pruning import (
    constrained_diff_pruning,
    diff_pruning,
    fixed_gates,
    materialize,
)
from subtune_jax.tuning.fixed_mask import largest_changes, mask_indices
from subtune_jax.tuning.gates import expected_nonzero
from subtune_jax.tuning.hard_concrete import HardConcrete
from tests import toy

KEY = jax.random.key(2)
BASE = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "head": {"bias": jnp.ones(3)}}
LABELS = {"a": {"kernel": "body"}, "head": {"bias": "head"}}


def begun(tuning, **values):
    """The parts at the start, with other values at paths."""
    parts = tuning.init(BASE, LABELS)
    flat = tree.flatten(parts.trainable)
    return parts._replace(trainable=tree.unflatten(flat | values))


def uniforms(key):
    """The numbers that the gates of a kernel's six elements, and its own, are drawn from."""
    u = np.float64(jax.random.uniform(key, (7,))) + 2.0**-24
    return u[:6].reshape(2, 3), u[6]


def gates(u, log_alpha):
    """z and its slope, as papers/diff_pruning.md 1.1 and 1.2 have them."""
    s = sigmoid(np.log(u) - np.log1p(-u) + log_alpha)
    wide = 3 * s - 1.5
    return np.clip(wide, 0, 1), 3 * s * (1 - s) * ((wide > 0) & (wide < 1))


def test_gradients_are_those_of_the_paper():
    """dw = g z zg; dalpha = g w zg z'; dalpha_g = sum g w z zg' (1.2)."""
    w, alpha, alpha_g = 0.1 * jnp.arange(1.0, 7).reshape(2, 3), 0.4, -0.3
    trainable, fixed = begun(
        diff_pruning(0.1),
        **{
            "a/kernel/w": w,
            "a/kernel/log_alpha": jnp.full((2, 3), alpha),
            "a/kernel/group_log_alpha": jnp.float32(alpha_g),
        },
    )
    g = np.array([[1.0, -2, 3], [0.5, 4, -1]])

    def loss(trainable):
        params = materialize(trainable, fixed, BASE, KEY)
        return jnp.sum(g * params["a"]["kernel"]) + params["head"]["bias"].sum()

    got = jax.grad(loss)(trainable)["a"]["kernel"]
    u, u_g = uniforms(KEY)
    (z, slope), (zg, slope_g) = gates(u, alpha), gates(u_g, alpha_g)
    assert 0 < zg < 1 and 0 < z.mean() < 1  # draws that show something
    w = np.float64(w)
    np.testing.assert_allclose(got["w"], g * z * zg, atol=1e-5)
    np.testing.assert_allclose(got["log_alpha"], g * w * zg * slope, atol=1e-5)
    whole = np.sum(g * w * z * slope_g)
    np.testing.assert_allclose(got["group_log_alpha"], whole, atol=1e-5)


@pytest.mark.parametrize(
    ("structure", "l0", "expected"),
    [
        ("none", "product", 6 * sigmoid(5)),
        ("leaf", "product", 6 * sigmoid(5) ** 2),
        ("leaf", "additive", 7 * sigmoid(5)),
        ("neuron", "product", 6 * sigmoid(5) ** 2),
        ("neuron", "additive", 9 * sigmoid(5)),
    ],
)
def test_the_penalty_is_the_strength_times_the_expected_number(structure, l0, expected):
    tuning = diff_pruning(0.25, structure=structure, l0=l0)
    trainable, fixed = tuning.init(BASE, LABELS)
    np.testing.assert_allclose(
        tuning.penalty(trainable, fixed, BASE), 0.25 * expected, rtol=1e-6
    )


def test_the_interval_and_temperature_count():
    gate = HardConcrete(-0.1, 1.1, 2 / 3)
    tuning = diff_pruning(1.0, structure="none", gate=gate)
    expected = 6 * sigmoid(5 - 2 / 3 * np.log(0.1 / 1.1))
    np.testing.assert_allclose(
        tuning.penalty(*tuning.init(BASE, LABELS), BASE), expected, rtol=1e-6
    )


def test_another_key_draws_other_gates():
    parts = begun(diff_pruning(1.0, log_alpha=0.0), **{"a/kernel/w": jnp.ones((2, 3))})
    one, same, other = (
        materialize(*parts, BASE, jax.random.key(s))["a"]["kernel"] for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def multiplier_step(tuning, trainable):
    """What the rule of the multiplier is given: m rises by its rate times this."""
    fixed = tuning.init(BASE, LABELS).fixed
    gradient = jax.grad(tuning.penalty)(trainable, fixed, BASE)
    assert not np.any(gradient["a"]["kernel"]["log_alpha"])
    return float(gradient["multiplier"])


MOVED = {"a/kernel/w": jnp.ones((2, 3))}


def test_the_multiplier_closes_gates_that_are_alike_by_the_cut():
    """Their log odds are log alpha - m: 5 at the start, and 0 is half of them."""
    half = partial(constrained_diff_pruning, 0.5, structure="none")
    trainable, _ = begun(half(), **MOVED)
    assert multiplier_step(half(), trainable) == pytest.approx(0.25, rel=1e-4)
    assert multiplier_step(half(cut=1.5), trainable) == pytest.approx(1.5, rel=1e-4)
    near, _ = begun(half(), multiplier=jnp.float32(4.9), **MOVED)
    assert multiplier_step(half(), near) == pytest.approx(0.1, rel=1e-4)
    there, _ = begun(half(), multiplier=jnp.float32(5.0), **MOVED)
    assert multiplier_step(half(), there) == pytest.approx(0.0, abs=1e-6)
    assert float(expected_nonzero(there)) == pytest.approx(3.0)  # sigmoid(0) of 6


def test_the_multiplier_counts_what_has_moved():
    """Gates at 0 are three of six; where two elements have moved, they are one."""
    tuning = constrained_diff_pruning(1 / 6, structure="none")
    at_zero = {"a/kernel/log_alpha": jnp.zeros((2, 3))}
    two = jnp.array([[0.0, 1.0, 0.0], [-2.0, 0.0, 0.0]])
    trainable, _ = begun(tuning, **at_zero, **{"a/kernel/w": two})
    assert float(expected_nonzero(trainable)) == pytest.approx(3.0)
    assert float(expected_nonzero(trainable, moved=True)) == pytest.approx(1.0)
    assert multiplier_step(tuning, trainable) == pytest.approx(0.0, abs=1e-6)
    unmoved, _ = begun(tuning, **at_zero)
    assert multiplier_step(tuning, unmoved) == 0


def test_the_multiplier_moves_where_most_gates_are_open_or_shut_for_good():
    """Three gates open, two shut and one at 0 are 3.5 of 6, and a unit of m closes a quarter
    of one: of log odds, 1/4 / (3.5 x 2.5 / 6)."""
    log_alpha = jnp.array([[30.0, 30.0, 30.0], [-30.0, -30.0, 0.0]])
    trainable, _ = begun(
        constrained_diff_pruning(0.5, structure="none"),
        **{"a/kernel/log_alpha": log_alpha},
        **MOVED,
    )
    near = constrained_diff_pruning(3.4 / 6, structure="none")
    error = np.log(3.5 / 2.5) - np.log(3.4 / 2.6)
    step = error / (0.25 / (3.5 * 2.5 / 6))
    assert multiplier_step(near, trainable) == pytest.approx(step, rel=1e-4)
    far = partial(constrained_diff_pruning, 0.1, structure="none")
    assert multiplier_step(far(), trainable) == pytest.approx(0.25 * 35 / 6, rel=1e-4)
    assert multiplier_step(far(cut=1.0), trainable) == 2.0  # of 5.8


@pytest.mark.parametrize(
    ("log_alpha", "step"),
    [(40.0, 2.0), (19.0, 2.0), (-19.0, -0.25), (-200.0, -2.0), (-1000.0, -2.0)],
)
def test_the_multiplier_comes_back_from_where_all_gates_are_open_or_shut(
    log_alpha, step
):
    half = constrained_diff_pruning(0.5, structure="none")
    alike = {"a/kernel/log_alpha": jnp.full((2, 3), log_alpha)}
    trainable, _ = begun(half, **alike, **MOVED)
    assert multiplier_step(half, trainable) == step


@pytest.mark.parametrize(
    ("log_alpha", "step"), [(0.0, -2.0), (19.0, -1.0), (20.0, 0.0)]
)
def test_the_multiplier_stops_where_the_share_cannot_be_reached(log_alpha, step):
    """The gate of the leaf is shut: those of elements are opened to 20 and no farther."""
    half = constrained_diff_pruning(0.5)
    shut = {"a/kernel/group_log_alpha": jnp.float32(-30.0)}
    alike = {"a/kernel/log_alpha": jnp.full((2, 3), log_alpha)}
    trainable, _ = begun(half, **alike, **shut, **MOVED)
    assert multiplier_step(half, trainable) == step


@pytest.mark.slow
def test_the_constraint_of_a_longer_run_holds():
    """Gates go on to open, at a rate that does not fall with the number of steps: a
    multiplier whose way is bounded loses them (660 % above, measured)."""
    network = toy.mlp(40)
    first = recipe(network, 0.01, adam(1e-3), 2000)[0]._replace(keeps=True)
    how = Settings(batch_size=16)
    result = fit(network, first, toy.points(), key=KEY, settings=how)
    size = tree.count({s: network.params[s] for s in ("one", "two")})
    expected = float(expected_nonzero(result.trainable, moved=True))
    assert expected == pytest.approx(0.01 * size, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.25])
def test_the_constraint_of_the_recipe_holds_at_the_end(share):
    network = toy.mlp(40)
    first, _ = recipe(network, share, adam(1e-3), 480)
    data = toy.points()
    first = first._replace(keeps=True)
    result = fit(network, first, data, key=KEY, settings=Settings(batch_size=16))
    size = tree.count({s: network.params[s] for s in ("one", "two")})
    expected = float(expected_nonzero(result.trainable, moved=True))
    assert expected == pytest.approx(share * size, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.25])
def test_the_constraint_holds_at_the_end(share):
    network = toy.mlp(40)
    labels = select(network, {"head": ["head"], "body": [".*"]})
    rules = {
        "body": adam(1e-3),
        "head": adam(1e-3),
        "gates": adam(0.1, schedule="linear"),
        "multiplier": ascent(0.4),
    }
    phase = Phase(labels, rules, 240, constrained_diff_pruning(share))
    result = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    size = sum(
        network.params[s][n].size for s in ("one", "two") for n in ("kernel", "bias")
    )
    expected = float(expected_nonzero(result.trainable, moved=True))
    assert expected == pytest.approx(share * size, rel=0.02)


def run(network, phases, **how):
    return fit(
        network, phases, toy.points(), key=KEY, settings=Settings(batch_size=16), **how
    ).network


def differing(network, tuned):
    """How many elements of the body differ from the base."""
    pairs = ((network.params[s], tuned.params[s]) for s in ("one", "two"))
    return sum(int((a[n] != b[n]).sum()) for a, b in pairs for n in a)


@pytest.mark.parametrize("how", [{"strength": 1e-3}, {}, {"start": "ungated"}])
def test_a_recipe_ends_in_exactly_its_share(how):
    network = toy.mlp()  # 72 elements before the head
    phases = recipe(network, 0.25, adam(1e-2), 60, **how)
    assert [phase.steps for phase in phases] == [30, 30]
    assert [phase.keeps for phase in phases] == [False, True]
    tuned = run(network, phases)
    assert differing(network, tuned) == 18
    data = toy.points()
    before, after = (cross_entropy(n(data.x), data.y).mean() for n in (network, tuned))
    assert float(after) < 0.9 * float(before)


def test_equal_changes_go_to_the_lower_index():
    """12 elements, of which 2 change, alike: the two, and the first ten of the rest."""

    def init(params, labels, key=None):
        parts = constrained_diff_pruning(0.5).init(params, labels, key)
        flat = tree.flatten(parts.trainable)
        w = jnp.zeros((4, 6)).at[3, 4:].set(1.0)
        return parts._replace(trainable=tree.unflatten(flat | {"one/kernel/w": w}))

    from subtune_jax.tuning.method import Ended

    network = toy.mlp()
    labels = select(network, {"body": ["one/kernel"]})
    tuning = constrained_diff_pruning(0.5)._replace(init=init)
    parts = init(network.params, labels)
    live = materialize(*parts, network.params)
    after = largest_changes(12).take_over(
        Ended(tuning, parts, live), network.params, labels, KEY
    )
    places = np.asarray(after.fixed["one"]["kernel"])
    np.testing.assert_array_equal(places, [*range(10), 22, 23])


def test_gates_that_are_fixed_stay_and_w_trains_on():
    network = toy.mlp()
    labels = select(network, {"head": ["head"], "body": ["one", "two"]})
    rules = {"body": adam(1e-2), "head": adam(1e-2)}
    tuning = diff_pruning(1e-3, log_alpha=0.0, structure="none")
    gated = Phase(labels, rules | {"gates": adam(0.1)}, 20, tuning, keeps=False)
    tuned = run(network, [gated, Phase(labels, rules, 20, fixed_gates())])
    changed = differing(network, tuned)
    assert 0 < changed < 72
    longer = run(network, [gated, Phase(labels, rules, 30, fixed_gates())])
    assert differing(network, longer) == changed
    assert tree.fingerprint(longer.params) != tree.fingerprint(tuned.params)


def test_all_elements_may_be_the_share():
    """E[L0] / d is 1 then, which no step beyond it reaches."""
    network = toy.mlp()
    labels = select(network, {"body": ["one/kernel"]})
    parts = constrained_diff_pruning(1.0).init(network.params, labels)
    assert parts.fixed["gates"]["share"] == 1
    with pytest.raises(
        InputError, match="share must be above 0 and at most 1, got 1.1"
    ):
        constrained_diff_pruning(1.1)


def test_fixed_gates_are_those_of_the_leaves_that_train_on():
    """Of two gated stages the second phase tunes one, and the head, which has no gates."""
    network = toy.mlp()
    gated = select(network, {"body": ["one", "two"]})
    later = select(network, {"body": ["two"], "head": ["head"]})
    rules = {"body": adam(1e-2), "gates": adam(0.1)}
    phases = [Phase(gated, rules, 4, diff_pruning(1e-3))]
    phases += [
        Phase(later, {name: adam(1e-2) for name in ("body", "head")}, 4, fixed_gates())
    ]
    settings = Settings(batch_size=16)
    result = fit(network, phases, toy.points(), key=KEY, settings=settings)
    first = fit(network, phases[:1], toy.points(), key=KEY, settings=settings)
    paths = list(tree.flatten(result.trainable))
    assert [path for path in paths if not path.startswith("one/")] == [
        "head/bias",
        "head/kernel",
        "two/bias/w",
        "two/kernel/w",
    ]
    rests = [tree.fingerprint(run.trainable["one"]) for run in (first, result)]
    assert rests[0] == rests[1]


def test_one_realisation_is_drawn_from_the_run_s_key():
    """What a mask compares is not the deterministic network: gates at 1/2 differ."""
    network = toy.mlp()
    phases = recipe(network, 0.25, adam(1e-2), 20, strength=1e-6)
    prints = {
        tree.fingerprint(
            fit(
                network,
                phases,
                toy.points(),
                key=jax.random.key(s),
                settings=Settings(batch_size=16),
            ).network.params["one"]
        )
        for s in (0, 0, 1)
    }
    assert len(prints) == 2


def test_groups_of_bert_large():
    """393 tensors with the classifier's two, 391 of them gated (papers/diff_pruning.md)."""
    config = BertConfig(
        hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096
    )
    small = config._replace(
        hidden_size=16, intermediate_size=8, vocab_size=20, max_positions=8
    )
    network = bert(small, jax.random.key(0))
    assert len(jax.tree.leaves(network.params)) == 393
    labels = select(network, {"head": ["head"], "body": [".*"]})
    trainable = diff_pruning(1.0).init(network.params, labels).trainable
    names = list(tree.flatten(trainable))
    assert sum(name.endswith("/group_log_alpha") for name in names) == 391


def test_bytes_of_a_step_s_state():
    """w, gates, and two moments of each: six times the parameters, and little more."""
    network = toy.mlp(200)

    def times(**how):
        phase = recipe(network, 0.01, adam(1e-3), 100, **how)[0]
        _, state = start(network, phase, Settings(cross_entropy), KEY)
        beyond = tree.nbytes(state._replace(key=None, stats={}))
        return beyond / tree.nbytes(network.params)

    assert 5.9 < times(strength=1e-3) <= 6.1
    assert 4.9 < times() <= 5.1  # the constraint's gates have one moment


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(diff_pruning, 0.0), "strength"),
        (partial(diff_pruning, 1.0, structure="row"), "structure"),
        (partial(diff_pruning, 1.0, l0="sum"), "form of L0"),
        (partial(diff_pruning, 1.0, gate=HardConcrete(0.1, 1.5)), "begin below 0"),
        (partial(diff_pruning, 1.0, gate=HardConcrete(-1.5, -0.1)), "end above 1"),
        (partial(constrained_diff_pruning, 0.0), "share must be above 0"),
        (partial(constrained_diff_pruning, 1.1), "at most 1"),
        (partial(constrained_diff_pruning, 0.1, cut=0.0), "cut must be"),
        (partial(recipe, toy.mlp(), 1e-6, adam(1e-3), 20), "leaves none of 72"),
        (
            partial(recipe, toy.mlp(), 0.1, adam(1e-3), 20, head="top"),
            "no stage is 'top'",
        ),
        (partial(recipe, toy.mlp(), 0.1, adam(1e-3), 1), "gated_steps|mask_steps"),
        (
            partial(recipe, toy.mlp(), 0.1, adam(1), 99, multiplier_rule=adam(0.1)),
            "must be `ascent` with a rate below 2, got adam at 0.1",
        ),
        (
            partial(recipe, toy.mlp(), 0.1, adam(1), 99, multiplier_rule=ascent(2.0)),
            "got ascent at 2.0",
        ),
        (
            partial(recipe, toy.mlp(), 0.1, adam(1), 99, multiplier_rule=0.5),
            "must be `ascent` with a rate below 2, got 0.5",
        ),
        (
            partial(
                recipe,
                toy.mlp(),
                0.1,
                adam(1),
                99,
                strength=1,
                multiplier_rule=ascent(1),
            ),
            "give one of the two",
        ),
        (
            partial(recipe, toy.mlp(), 0.1, adam(1), 99, l0="additive"),
            "l0 applies only with a strength.*leave l0 out",
        ),
        (partial(largest_changes, 3, start="zero"), "start"),
    ],
)
def test_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_gates_that_all_closed_are_said():
    network = toy.mlp()
    rule = adam(1e-2)
    phases = recipe(network, 0.25, rule, 60, strength=1e4, gates_rule=adam(1.0))
    with pytest.raises(InputError, match="all gates closed.*lower the strength"):
        run(network, phases)


def test_what_needs_diff_pruning_before_it_says_so():
    network = toy.mlp()
    labels = select(network, {"body": ["one"]})
    assert FROZEN in set(jax.tree.leaves(labels))
    first = Phase(labels, adam(1e-2), 4)
    for tuning in (fixed_gates(), largest_changes(3, start="ungated")):
        with pytest.raises(InputError, match="phase of diff pruning"):
            run(network, [first, Phase(labels, adam(1e-2), 4, tuning)])


def test_gates_that_rest_keep_their_values_and_train_on():
    network, tuning = toy.mlp(), diff_pruning(1e-3)
    both, last = (
        select(network, {"body": units}) for units in (["one", "two"], ["two"])
    )
    rules = {"body": adam(1e-2), "gates": adam(0.1)}
    phases = [Phase(labels, rules, 10, tuning) for labels in (both, last, both)]
    first, second, third = (
        fit(
            network, phases[:n], toy.points(), key=KEY, settings=Settings(batch_size=16)
        )
        for n in (1, 2, 3)
    )
    one = [tree.fingerprint(r.trainable["one"]) for r in (first, second, third)]
    assert one[0] == one[1] != one[2]
    two = [tree.fingerprint(r.trainable["two"]) for r in (first, second, third)]
    assert len(set(two)) == 3
    pair = (tree.fingerprint(r.network.params["one"]) for r in (first, second))
    assert next(pair) == next(pair)


def test_too_few_steps_for_the_constraint_are_said():
    """From log alpha 5 to logit(0.005) = -5.29 by one in a step, and then halves of what
    is left: eight to one in 200."""
    with pytest.raises(
        InputError,
        match="at least 19 steps .* 0.005 at a rate of 0.5, and there are 10",
    ):
        recipe(toy.mlp(40), 0.005, adam(1e-2), 20)


@pytest.mark.parametrize(("steps", "cut"), [(20, 2.0), (100, 0.41172), (9000, 0.25)])
def test_gates_close_in_half_of_the_steps_or_sooner(steps, cut):
    """A way of 10.293 at a rate of 1/2: in 50 steps 0.41172 each; 2 and 1/4 are bounds."""
    network = toy.mlp(40)
    first, _ = recipe(network, 0.005, adam(1e-2), 2 * steps)
    fixed = first.tuning.init(network.params, first.labels).fixed
    assert float(fixed["gates"]["cut"]) == pytest.approx(cut, rel=1e-4)


def test_a_mask_says_how_many_elements_the_gates_had_changed():
    """All gates open, all elements move: the mask of 18 is made from 72."""
    network = toy.mlp()
    phases = recipe(network, 0.25, adam(1e-2), 4, strength=1e-9)
    result = fit(
        network, phases, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    changed = int(result.fixed["realisation"]["changed"])
    assert 60 < changed <= 72
    indices = mask_indices(result.trainable, result.fixed)
    assert sum(map(len, indices.values())) == 18
    alone = phases[0]._replace(keeps=True)
    gated = fit(network, alone, toy.points(), key=KEY, settings=Settings(batch_size=16))
    expected = float(expected_nonzero(gated.trainable))
    assert 60 < expected < 72
    assert float(result.fixed["realisation"]["expected"]) == pytest.approx(expected)
