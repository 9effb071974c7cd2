"""What each method of surgical fine-tuning trains, and when."""

import jax
import numpy as np
import pytest

from experiments.common.schemes import SCHEMES, Budget, Variant, labels, phases
from experiments.common.study import task_name
from experiments.common.surgical import Recipe, derived, variants
from subtune_jax import tree
from subtune_jax.data.batches import Batch
from subtune_jax.deltas.store import NAME
from subtune_jax.errors import InputError
from subtune_jax.models.resnet import ResNetConfig, resnet
from subtune_jax.tuning.subset import subset

BUDGET = Budget(steps=40, l2=1e-4)
RECIPE = Recipe(
    learning_rates=(1e-3, 1e-4),
    head_learning_rates=(1e-1, 1e-2, 1e-3),
    auto_learning_rates=(1e-2,),
    anchor_strengths=(0.01, 0.1),
    snr_thresholds=(0.2, 0.5, 0.8),
)


@pytest.fixture(scope="module")
def network():
    return resnet(ResNetConfig(widths=(8, 8, 16), groups=4), jax.random.key(0))


def trained(chosen):
    """Returns the stages of which something trains."""
    flat = tree.flatten(chosen).items()
    return {name.split("/")[0] for name, label in flat if label != "frozen"}


def made(network, method, setting=0.1):
    return phases(network, method, Variant(1e-3, setting), BUDGET)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("none", 0),
        ("block1", 2),
        ("last", 3),
        ("l1_sp", 4),
        ("auto_snr", 6),
        ("lp_ft", 2),
    ],
)
def test_what_is_tried(method, count):
    assert len(variants(method, RECIPE)) == count


def test_blocks_are_the_papers(network):
    (phase,) = made(network, "block3")
    assert trained(phase.labels) == {"block3_0"}
    (phase,) = made(network, "block1")
    assert trained(phase.labels) == {"stem", "block1_0"}


@pytest.mark.parametrize("method", SCHEMES)
def test_every_scheme_spends_the_budget_at_the_variants_rate(network, method):
    found = made(network, method)
    assert sum(phase.steps for phase in found) == BUDGET.steps
    assert found[-1].rules.learning_rate == 1e-3 and found[-1].rules.l2 == 1e-4
    flat = tree.flatten(labels(network, method))
    last = tree.flatten(found[-1].labels)
    assert [n for n in flat if flat[n] != "frozen"] == [
        n for n in last if last[n] != "frozen"
    ]


def test_unfreezing_adds_blocks_from_either_end(network):
    first, last = (made(network, f"unfreeze_{end}") for end in ("first", "last"))
    body = ["block1_0", "block2_0", "block3_0", "head"]
    assert [trained(p.labels) for p in first] == [
        {"stem", *body[: i + 1]} for i in range(4)
    ]
    assert [trained(p.labels) for p in last] == [
        set(body[-i - 1 :]) | ({"stem"} if i == 3 else set()) for i in range(4)
    ]
    assert [p.steps for p in first] == [10, 10, 10, 10]


def test_probing_comes_before_tuning(network):
    probe, tune = made(network, "lp_ft")
    assert trained(probe.labels) == {
        "head"
    } and probe.rules.learning_rate == pytest.approx(1e-2)
    assert "stem" in trained(tune.labels) and (probe.steps, tune.steps) == (20, 20)


def test_anchors_pull_everything_with_their_strength(network):
    (phase,) = made(network, "l2_sp", 0.5)
    moved = jax.tree.map(lambda leaf: leaf + 1, network.params)
    count = tree.count(network.params)
    fixed = phase.tuning.init(network.params, phase.labels, None).fixed
    assert float(phase.tuning.penalty(moved, fixed, network.params)) == pytest.approx(
        0.25 * count
    )
    (phase,) = made(network, "l1_sp", 0.5)
    fixed = phase.tuning.init(network.params, phase.labels, None).fixed
    assert float(phase.tuning.penalty(moved, fixed, network.params)) == pytest.approx(
        0.5 * count
    )


def test_automatic_rules_leave_norms_out_and_set_multipliers(network):
    resetting = {"auto_rgn", "auto_rgn_blocks", "auto_snr_official"}
    for method in (*resetting, "auto_snr"):
        (phase,) = made(network, method)
        flat = tree.flatten(phase.labels)
        norms = [name for name in flat if "norm" in name]
        assert norms and {flat[name] for name in norms} == {"frozen"}
        assert {flat[name] for name in flat if name not in norms} == {"tuned"}
        assert phase.multipliers is not None and phase.reset_moments is (
            method in resetting
        )
        assert phase.tuning == subset()


@pytest.mark.slow
def test_automatic_rules_weigh_tensors_or_blocks_or_switch_them(network):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    batch = Batch(x, np.arange(8) % 10, np.ones(8, np.float32))

    def factors(method):
        (phase,) = made(network, method)
        paths = [n for n, g in tree.flatten(phase.labels).items() if g != "frozen"]
        return phase.multipliers(network, [batch], paths)

    tensors, blocks = factors("auto_rgn"), factors("auto_rgn_blocks")
    one, other = "block2_0/conv1/kernel", "block2_0/conv2/kernel"
    assert tensors[one] != tensors[other] and max(tensors.values()) == 1
    assert blocks[one] == blocks[other] and max(blocks.values()) == 1
    assert set(factors("auto_snr_official").values()) <= {0.0, 1.0}


def test_an_unknown_method_shows_the_nearest(network):
    with pytest.raises(InputError, match="unknown method 'auto_rng'.*mean 'auto_rgn'"):
        labels(network, "auto_rng")


def row(method, seed, validation, value):
    fixed = {"task": "t", "method": method, "seed": seed}
    tried = fixed | {"split": "validation", "value": validation}
    return [tried | {"value": 1.0}, tried, fixed | {"split": "test", "value": value}]


def test_cross_val_is_the_block_that_validation_chooses():
    rows = [
        *row("block1", 0, 80.0, 70.0),
        *row("block2", 0, 85.0, 60.0),
        *row("last", 0, 50.0, 90.0),
        *row("all", 0, 99.0, 99.0),
        *row("block1", 1, 80.0, 71.0),
        *row("block2", 1, 75.0, 99.0),
        *row("auto_rgn", 0, 70.0, 1.0),
        *row("auto_snr", 0, 60.0, 2.0),
    ]
    found = {(r["method"], r["seed"]): r["value"] for r in derived(rows)}
    assert found == {
        ("cross_val", 0): 60.0,
        ("cross_val", 1): 71.0,
        ("automatic", 0): 1.0,
    }
    assert np.all([r["split"] == "test" for r in derived(rows)])


def test_no_two_jobs_share_the_name_of_a_delta():
    jobs = [("a:b", 0), ("a_b", 0), (".*bias", 0), ("__bias", 0), ("...", 0), ("b", 1)]
    names = [task_name(job) for job in jobs]
    assert len(set(names)) == len(jobs) and all(map(NAME.fullmatch, names))
    assert names[1] == "a_b-0" and names[-1] == "b-1"
