"""What a checkpoint's run is known by: two that may differ in their result differ here."""

import importlib
import os
import subprocess
import sys
from functools import partial, wraps

import jax
import numpy as np
import pytest

from subtune_jax.data.buckets import ragged
from subtune_jax.data.crops import crop_and_flip
from subtune_jax.errors import InputError
from subtune_jax.function_identity import said
from subtune_jax.losses import cross_entropy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.selection.select import select
from subtune_jax.training.identity import identity
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.anchor import l1_sp, l2_sp
from subtune_jax.tuning.fixed_mask import fixed_mask
from subtune_jax.tuning.rescaled import rescaled
from tests import toy

SMALL = BertConfig(40, 16, 2, 4, 24, 12, dropout=0.1)
KEY = jax.random.key(0)


def mask(*places):
    return fixed_mask({"two/kernel": np.array(places)})


def stages(**changes):
    return bert(SMALL._replace(**changes), KEY).stages


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def apply(self, x):
        return self.factor * x


def draws(seed):
    rng = np.random.default_rng(seed)
    return lambda x, _: x + rng.normal()


def scaled(factor):
    @wraps(abs)
    def scale(x):
        return factor * x

    return scale


@pytest.mark.parametrize(
    ("one", "again", "other"),
    [
        (mask(0, 1), mask(0, 1), mask(0, 2)),
        (rescaled(), rescaled(), rescaled(("one",))),
        (l1_sp(0.1), l1_sp(0.1), l1_sp(0.2)),
        (l1_sp(0.1), l1_sp(0.1), l2_sp(0.1)),
        (crop_and_flip(), crop_and_flip(), crop_and_flip(2)),
        (stages(), stages(), stages(dropout=0.2)),
        (stages(), stages(), stages(pooling="mean")),
        (partial(max, 1), partial(max, 1), partial(max, 2)),
        (cross_entropy, cross_entropy, jax.jit(np.sum)),
        ({"a": {1, 2}}, {"a": {2, 1}}, {"a": {1, 3}}),
        (KEY, jax.random.key(0), jax.random.key(1)),
        (stages(), stages(), stages(activation="gelu_new")),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
        (scaled(1), scaled(1), scaled(2)),
        (jax.jit(scaled(1)), jax.jit(scaled(1)), jax.jit(scaled(2))),
        (Scale(1).apply, Scale(1).apply, Scale(2).apply),
        (ragged([np.arange(2000)]),) * 2 + (ragged([np.arange(2000) % 1999]),),
        (draws(0), draws(0), draws(1)),
        (
            np.array([{}, 1], object),
            np.array([{}, 1], object),
            np.array([{}, 2], object),
        ),
    ],
)
def test_equal_settings_say_the_same_and_others_do_not(one, again, other):
    assert said(one) == said(again) != said(other)


def test_a_function_that_closes_over_itself_is_said():
    def recursive(n):
        return recursive(n - 1)

    assert said(recursive).endswith("None, None, [itself]]")


def test_a_function_that_is_not_whole_yet_is_said():
    def early():
        return later

    assert said(early).endswith("None, None, ['empty']]")
    later = 1
    assert said(early).endswith("None, None, [1]]")


def test_no_address_is_said():
    assert "0x" not in said([stages(), toy.small_resnet().stages, draws(0), Scale(1)])


def said_in_processes(code, seeds):
    """Returns what a program prints in processes that hash strings differently."""
    return {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in seeds
    }


@pytest.mark.slow
def test_another_process_says_the_same():
    code = (
        "from tests.training.test_identity import *; import hashlib;"
        "whole = said([stages(), mask(0, 1), toy.small_resnet().stages, crop_and_flip()]);"
        "print(hashlib.sha256(whole.encode()).hexdigest())"
    )
    assert len(said_in_processes(code, "12")) == 1


def test_the_checkpoint_of_another_mask_is_refused(tmp_path):
    network = toy.mlp()
    labels = select(network, {"g": ["two/kernel"]})

    def run(tuning):
        phase = Phase(labels, sgd(0.1), 3, tuning)
        return fit(network, phase, toy.points(), key=KEY, checkpoint=tmp_path)

    run(mask(0, 1))
    run(mask(0, 1))  # the same run, made anew
    with pytest.raises(InputError, match="belongs to a run with other settings"):
        run(mask(2, 3))


def plan(**changes):
    network = changes.pop("network", toy.mlp())
    phase = {name: changes.pop(name) for name in [*changes] if name in Phase._fields}
    entries = {"g": phase.pop("labels", ["two"])}
    made = Phase(select(network, entries), **({"rules": sgd(0.1), "steps": 6} | phase))
    data, key = changes.pop("data", toy.points()), changes.pop("key", KEY)
    settings = Settings(**({"batch_size": 16} | changes))
    return make_plan(network, made, data, key=key, settings=settings)


def moved_point(row, column):
    data = toy.points()
    data.x[row, column] += 1e-3
    return data


def factors(value):
    return lambda network, batches, paths: {path: value for path in paths}


def twice(outputs, targets):
    return 2 * cross_entropy(outputs, targets)


CHANGES = {
    "a pixel": lambda: {"data": moved_point(17, 2)},
    "another pixel": lambda: {"data": moved_point(30, 0)},
    "a label": lambda: {"data": toy.points()._replace(y=toy.points().y[::-1].copy())},
    "the labels of leaves": lambda: {"labels": ["two/kernel"]},
    "the loss": lambda: {"loss": twice},
    "the rate": lambda: {"rules": sgd(0.2)},
    "a schedule": lambda: {"rules": sgd(0.1, schedule="cosine")},
    "its steps": lambda: {"rules": sgd(0.1, schedule="cosine"), "steps": 9},
    "multipliers": lambda: {"multipliers": factors(1.0)},
    "other multipliers": lambda: {"multipliers": factors(2.0)},
    "moments": lambda: {"reset_moments": True},
    "the tuning": lambda: {"tuning": l2_sp(0.1)},
    "its strength": lambda: {"tuning": l2_sp(0.2)},
    "dropout": lambda: {"dropout": "none"},
    "the norm": lambda: {"norm": "batch"},
    "the batch size": lambda: {"batch_size": 8},
    "accumulation": lambda: {"accumulate": 2},
    "augmentation": lambda: {"augment": crop_and_flip(1)},
    "more of it": lambda: {"augment": crop_and_flip(2)},
    "the key": lambda: {"key": jax.random.key(1)},
}


def recipe_of(*args):
    """Returns the recipe of a run as one value."""
    return tuple(sorted(identity(*args)["recipe"].items()))


def test_whatever_a_result_depends_on_is_another_recipe():
    recipes = {name: recipe_of(plan(**make())) for name, make in CHANGES.items()}
    recipes["nothing"] = recipe_of(plan())
    recipes["a score"] = recipe_of(plan(), "max")
    recipes["the lowest score"] = recipe_of(plan(), "min")
    assert len(set(recipes.values())) == len(recipes)
    assert recipe_of(plan()) == recipes["nothing"]
    assert recipe_of(plan(steps=9)) == recipes["nothing"]  # more of them continue it
    assert len({identity(plan(**make()))["base"] for make in CHANGES.values()}) == 1


def test_what_is_kept_is_part_of_the_recipe():
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["two"]}), sgd(0.1), 6)
    recipes = {
        recipe_of(
            make_plan(network, [phase._replace(keeps=k), phase], toy.points(), key=KEY)
        )
        for k in (True, False)
    }
    assert len(recipes) == 2
    with pytest.raises(InputError, match="no phase keeps its epochs"):
        fit(network, phase._replace(keeps=False), toy.points(), key=KEY)


def test_a_value_that_is_read_through_a_module_is_said(tmp_path, monkeypatch):
    (tmp_path / "their_settings.py").write_text("T = 1.0")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("their_settings")
    scope = {"settings": module, "__name__": "theirs"}
    exec("def loss(o, y):\n return settings.T * o", scope)
    before = said(scope["loss"])
    assert said(scope["loss"]) == before
    module.T = 5.0
    assert said(scope["loss"]) != before


@pytest.mark.slow
def test_constants_are_said_the_same_in_every_process():
    code = (
        "from subtune_jax.function_identity import fingerprint\n"
        "def f(y):\n return y in {'alpha', 'beta', 'gamma'}\n"
        "print(fingerprint(f))"
    )
    assert len(said_in_processes(code, "123")) == 1


@pytest.mark.slow
def test_networks_with_dropout_are_known_whatever_was_built_before():
    code = (
        "import jax, sys; from subtune_jax.function_identity import fingerprint;"
        "from tests.training.test_identity import SMALL, bert;"
        "[bert(SMALL, jax.random.key(n)) for n in range(int(sys.argv[1]))];"
        "print(fingerprint(bert(SMALL, jax.random.key(7)).stages))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, before], capture_output=True, check=True
        ).stdout
        for before in ("0", "1")
    }
    assert len(found) == 1


def test_a_library_in_a_folder_of_its_own_is_known_by_name(tmp_path, monkeypatch):
    """As `pip install --target` and `--user` put it; a user's file beside it is not."""
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\n")
    (metadata / "RECORD").write_text("elsewhere/__init__.py,,\n../bin/run,,\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/__init__.py").touch()  # Python 3.12 lists what is there
    monkeypatch.syspath_prepend(tmp_path)
    assert not describes_code(tmp_path / "elsewhere/__init__.py")
    assert describes_code(tmp_path / "own.py")
    assert describes_code(tmp_path / "elsewhere_too/__init__.py")


def test_a_checkout_that_was_built_is_still_a_users_code(tmp_path, monkeypatch):
    """`pip install -e` leaves a list of the sources beside them, tests included."""
    metadata = tmp_path / "mine.egg-info"
    metadata.mkdir()
    (metadata / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mine\n")
    (metadata / "SOURCES.txt").write_text("mine/__init__.py\ntests/test_mine.py\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert describes_code(tmp_path / "mine/__init__.py")
    assert describes_code(tmp_path / "tests/test_mine.py")


def describes_code(file):
    code = compile("def loss(y): return y * 2", file, "exec")
    scope: dict = {"__name__": "mine"}
    exec(code, scope)
    return said(scope["loss"]) != "mine.loss[None, None, None, []]"
