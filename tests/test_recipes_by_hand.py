"""Rules, keys and losses of recipes, which their labels and steps do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import subtune_jax as st
from subtune_jax import recipes, tree
from subtune_jax.recipes import units
from subtune_jax.training.optimizers import Rule, adam, adamw, normalized_sgd, sgd
from subtune_jax.tuning.diff_pruning import constrained_diff_pruning, fixed_gates
from subtune_jax.tuning.gates import gate_of, gates_of
from subtune_jax.tuning.hard_concrete import deterministic
from subtune_jax.tuning.method import Ended
from tests import toy

KEY = jax.random.key(0)


def test_gates_under_a_strength_move_by_clipped_adam():
    """0.1, clipped at a norm of 1 (official code)."""
    first, _ = recipes.diff_pruning(toy.mlp(), 0.5, sgd(0.2), 40, strength=1e-3)
    assert first.rules["gates"] == Rule(0.1, "adam", clip_norm=1.0)


def test_gates_under_the_constraint_fall_to_0():
    first, _ = recipes.diff_pruning(toy.mlp(), 0.5, sgd(0.2), 400)
    assert first.rules["gates"] == Rule(
        0.1, "normalized", momentum=0.9, schedule="linear"
    )
    assert first.rules["multiplier"] == Rule(0.5, "ascent")


@pytest.mark.parametrize("strength", [None, 1e-3])
def test_head_and_mask_have_rules_of_their_own(strength):
    own, head, mask = sgd(0.2), adam(0.3), adamw(0.4)
    phases = recipes.diff_pruning(
        toy.mlp(), 0.5, own, 400, strength=strength, head_rule=head, mask_rule=mask
    )
    assert [phase.rules["head"] for phase in phases] == [head, head]
    assert [phase.rules[units.GROUP] for phase in phases] == [own, mask]
    plain = recipes.diff_pruning(toy.mlp(), 0.5, own, 400, strength=strength)
    assert [phase.rules["head"] for phase in plain] == [own, own]
    assert [phase.rules[units.GROUP] for phase in plain] == [own, own]
    given = normalized_sgd(0.7)
    gated, _ = recipes.diff_pruning(
        toy.mlp(), 0.5, own, 400, strength=strength, gates_rule=given
    )
    assert gated.rules["gates"] == given


def test_gates_are_fixed_as_they_were_drawn():
    """At log alpha 0 a gate without noise is 0, and half of those that are drawn are not."""
    network = toy.mlp()
    labels = st.select(network, {"g": ["two"]})
    tuning = constrained_diff_pruning(0.5, structure="none", log_alpha=0.0)
    parts = tuning.init(network.params, labels)
    parts = parts._replace(
        trainable=tree.map_with_path(
            lambda path, x: jnp.ones_like(x) if path.endswith("/w") else x,
            parts.trainable,
        )
    )
    ended = Ended(tuning, parts, network.params)
    key = jax.random.key(5)
    fixed = fixed_gates().take_over(ended, network.params, labels, key).fixed
    values = tree.flatten(parts.trainable)
    drawn = gates_of(values, gate_of(parts.fixed), key)["two/kernel"]
    found = fixed["two"]["kernel"]["gate"]
    np.testing.assert_array_equal(found, drawn)
    assert not deterministic(jnp.zeros(3), gate_of(parts.fixed)).any()
    assert 4 < np.count_nonzero(found) < 32 and len(np.unique(found)) > 4


def test_the_official_auto_snr_has_its_code_s_threshold(monkeypatch):
    given = {}

    def auto_snr(loss, **how):
        given.update(how, loss=loss)
        return lambda *_: {}

    monkeypatch.setattr(units.rate_multipliers, "auto_snr", auto_snr)
    loss = st.losses.label_smoothing(0.1)
    (phase,) = recipes.auto_snr_official(toy.small_resnet(), sgd(0.1), 4, loss=loss)
    assert given == {
        "threshold": 0.95,
        "mode": "official",
        "normalization": "none",
        "loss": loss,
    }
    assert phase.reset_moments
    recipes.auto_snr(toy.small_resnet(), sgd(0.1), 4, threshold=0.25, loss=loss)
    assert given["threshold"] == 0.25 and given["mode"] == "microbatch"
    assert given["loss"] is loss


def test_auto_rgn_reads_the_loss_that_it_is_given():
    """Twice the loss has twice the gradient everywhere, and the same ratios; a loss of one
    output moves the others' biases not at all."""
    network, data = toy.small_resnet(), toy.images(12)
    batches = [st.data.batches.padded(data, 12)]

    def of(loss):
        (phase,) = recipes.auto_rgn(network, sgd(0.1), 4, loss=loss)
        assert phase.reset_moments
        paths = ["stem/conv/kernel", "head/kernel"]
        return phase.multipliers(network, batches, paths)

    plain = of(st.losses.cross_entropy)
    other = of(lambda o, t: jnp.square(o[:, 0]))
    assert max(plain.values()) == max(other.values()) == 1.0
    assert plain != other
