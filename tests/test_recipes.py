"""Methods as lists of phases: what trains in each, and for how many steps."""

import pytest

from subtune_jax import recipes, tree
from subtune_jax.errors import InputError
from subtune_jax.training.optimizers import adam
from tests import toy

RULE, PROBE = adam(1e-3), adam(1e-2)
NETWORK = toy.mlp()  # stages one, two, head


def trained(phase):
    flat = tree.flatten(phase.labels).items()
    return {name.split("/")[0] for name, label in flat if label != "frozen"}


def test_linear_probing_then_fine_tuning():
    found = recipes.linear_probe_then_finetune(NETWORK, PROBE, RULE, 10)
    assert [trained(p) for p in found] == [{"head"}, {"one", "two", "head"}]
    assert [(p.rules, p.steps) for p in found] == [(PROBE, 5), (RULE, 5)]
    early = recipes.linear_probe_then_finetune(
        NETWORK, PROBE, RULE, 10, probe_share=0.2
    )
    assert [p.steps for p in early] == [2, 8]
    with pytest.raises(InputError, match="probe_steps must be a positive number"):
        recipes.linear_probe_then_finetune(NETWORK, PROBE, RULE, 1)


def test_gradual_unfreezing_adds_units_in_the_order_given():
    found = recipes.gradual_unfreezing(NETWORK, ["head", "two", "one"], RULE, 10)
    names = [{"head"}, {"head", "two"}, {"head", "two", "one"}]
    assert [trained(p) for p in found] == names
    assert [p.steps for p in found] == [3, 3, 4]
    with pytest.raises(InputError, match="needs at least one unit"):
        recipes.gradual_unfreezing(NETWORK, [], RULE, 10)


def test_units_alone_are_one_phase():
    (phase,) = recipes.tune_units(NETWORK, ["one", "head"], RULE, 7)
    assert trained(phase) == {"one", "head"} and phase.steps == 7


def test_automatic_rates_leave_norms_out():
    network = toy.small_resnet("group")
    for phases in (
        recipes.auto_rgn(network, RULE, 4),
        recipes.auto_snr(network, RULE, 4, threshold=0.2),
        recipes.auto_snr_official(network, RULE, 4),
    ):
        (phase,) = phases
        labels = tree.flatten(phase.labels)
        assert {n for n, g in labels.items() if g == "frozen"} == {
            n for n in labels if "norm" in n
        }
        assert phase.multipliers is not None
