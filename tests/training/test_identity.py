"""What a checkpoint's run is known by: two that may differ in their result differ here."""

import abc
import dataclasses
import enum
import importlib
import os
import subprocess
import sys
from collections import defaultdict
from functools import partial, wraps
from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from subtune_jax.data.buckets import ragged
from subtune_jax.data.crops import crop_and_flip
from subtune_jax.errors import InputError
from subtune_jax.host_functions import described, named
from subtune_jax.losses import cross_entropy
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.selection.rate_multipliers import auto_rgn
from subtune_jax.selection.select import select
from subtune_jax.training import checkpoints
from subtune_jax.training import identity as run_identity
from subtune_jax.training.checkpoints import Saved
from subtune_jax.training.identity import identity
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import sgd
from subtune_jax.training.phases import Phase
from subtune_jax.training.plan import make_plan
from subtune_jax.training.resume import first_snapshot
from subtune_jax.training.same_run import begun_phase
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.anchor import l2_sp
from subtune_jax.tuning.fixed_mask import fixed_mask
from tests import toy
from tests.training import kinds

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

    __call__ = apply


def draws(seed):
    noise = np.random.default_rng(seed).normal(size=3)
    return lambda x, _: x + noise[0]


def with_attribute(value):
    def function(x):
        return x + function.value

    function.value = value
    return function


def scaled(factor):
    @wraps(abs)
    def scale(x):
        return factor * x

    return scale


@pytest.mark.parametrize(
    ("one", "again", "other"),
    [
        (crop_and_flip(), crop_and_flip(), crop_and_flip(2)),
        (partial(max, 1), partial(max, 1), partial(max, 2)),
        (cross_entropy, cross_entropy, jax.jit(np.sum)),
        ({"a": {1, 2}}, {"a": {2, 1}}, {"a": {1, 3}}),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (defaultdict(abs), defaultdict(abs), defaultdict(min)),
        (np.float32(1), np.float32(1), np.ones(1, np.float32)),
        (KEY, jax.random.key(0), jax.random.key(1)),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
        (lambda x: abs(min(x)), lambda x: abs(min(x)), lambda x: min(abs(x))),
        (lambda x: x in {"b", "a"}, lambda x: x in {"a", "b"}, lambda x: x in {"a"}),
        (scaled(1), scaled(1), scaled(2)),
        (jax.jit(scaled(1)), jax.jit(scaled(1)), jax.jit(scaled(2))),
        (lambda x, n=1: x + n, lambda x, n=1: x + n, lambda x, n=2: x + n),
        (lambda x, *, n=1: x + n, lambda x, *, n=1: x + n, lambda x, *, n=2: x + n),
        (with_attribute(1), with_attribute(1), with_attribute(2)),
        (1, 1, 1.0),
        (ragged([np.arange(2000)]),) * 2 + (ragged([np.arange(2000) % 1999]),),
        (draws(0), draws(0), draws(1)),
        (named("a", max), named("a", min), named("b", max)),
    ],
)
def test_equal_values_are_described_the_same_and_others_are_not(one, again, other):
    assert described(one) == described(again) != described(other)


def test_names_that_are_swapped_and_docstrings():
    def code(first, second, doc="One."):
        scope = {"__name__": "mine", "a": 1.0, "b": 2.0}
        text = f"def f(x):\n '{doc}'\n return {first} * x + {second}"
        exec(compile(text, __file__, "exec"), scope)
        return described(scope["f"])

    assert code("a", "b") == code("a", "b", "Another.") != code("b", "a")


def test_a_function_that_closes_over_itself_or_is_not_whole_is_described():
    def recursive(n):
        return recursive(n - 1)

    def early():
        return later

    assert "tuple(seen 0)" in described(recursive)
    assert "tuple(tuple()" in described(early)
    later = 1
    assert "tuple(tuple(int 1)" in described(early)


def test_what_cannot_be_read_exactly_needs_a_name(tmp_path):
    scope: dict = {}
    exec("def augment(x, rng): return x", scope)
    module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    def teacher(x, rng):
        return module(x)

    refused = {
        scope["augment"]: "the source of 'augment' is in no file.*st.named",
        teacher: "'Linear' cannot be read exactly.*st.named",
    }
    for function, message in refused.items():
        with pytest.raises(InputError, match=message):
            fit_with(function, tmp_path)
        assert not list(tmp_path.iterdir())  # before the first step
    fit_with(named("no change", scope["augment"]), tmp_path)
    fit_with(named("no change", lambda x, rng: x), tmp_path)
    with pytest.raises(InputError, match="these differ: augment"):
        fit_with(named("another", scope["augment"]), tmp_path)
    with pytest.raises(InputError, match="named takes a name and a function"):
        named("", max)


def fit_with(augment, folder):
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["head"]}), sgd(0.1), 3)
    settings = Settings(batch_size=16, augment=augment)
    return fit(
        network, phase, toy.points(), key=KEY, checkpoint=folder, settings=settings
    )


def test_no_address_is_described():
    every = [draws(0), crop_and_flip(), auto_rgn(cross_entropy)]
    assert "0x" not in described(every)


@pytest.mark.slow
def test_another_process_describes_the_same():
    code = (
        "from tests.training.test_identity import *;"
        "print(described([draws(0), crop_and_flip(), scaled(2),"
        "lambda y: y in {'alpha', 'beta', 'gamma'}, auto_rgn(cross_entropy)][:3]))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1


@pytest.mark.parametrize("changed", [{"jax": "0.9.1"}, {"x64": "True"}])
def test_other_versions_are_said_and_resumed_at_the_users_word(
    tmp_path, monkeypatch, changed
):
    def run(steps, **more):
        network = toy.mlp()
        phase = Phase(select(network, {"g": ["two"]}), sgd(0.1), steps)
        return fit(network, phase, toy.points(), key=KEY, **more).network

    versions = run_identity.versions()
    with monkeypatch.context() as patched:
        patched.setattr(run_identity, "versions", lambda: versions | changed)
        run(3, checkpoint=tmp_path)
    ((name, old),) = changed.items()
    message = f"is of {name} {old}, and this is {name} {versions[name]}"
    with pytest.raises(InputError, match=message):
        run(6, checkpoint=tmp_path)
    with pytest.raises(InputError, match="unknown resume 'same'.*'same values'"):
        run(6, checkpoint=tmp_path, resume="same")
    again = run(6, checkpoint=tmp_path, resume="same values")
    chex.assert_trees_all_equal(again.params, run(6).params)
    run(6, checkpoint=tmp_path)  # it is of these versions from then on


def test_same_values_are_still_compared(tmp_path, monkeypatch):
    versions = run_identity.versions()

    def run(rate, **more):
        network = toy.mlp()
        phase = Phase(select(network, {"g": ["two"]}), sgd(rate), 3)
        return fit(network, phase, toy.points(), key=KEY, checkpoint=tmp_path, **more)

    with monkeypatch.context() as patched:
        patched.setattr(run_identity, "versions", lambda: versions | {"jax": "0"})
        run(0.1)
    with pytest.raises(InputError, match="these differ: rules"):
        run(0.2, resume="same values")


def test_a_checkpoint_of_an_earlier_form_is_refused(tmp_path):
    facts = {"base": "b", "recipe": {"data": "d"}, "logs": []}
    checkpoints.save(tmp_path, Saved(3, {"state/step": np.array(3)}, facts))
    with pytest.raises(InputError, match="written by an earlier version of this lib"):
        fit_with(None, tmp_path)


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
    "the batch size": lambda: {"batch_size": 8},
    "accumulation": lambda: {"accumulate": 2},
    "augmentation": lambda: {"augment": draws(0)},
    "more of it": lambda: {"augment": draws(1)},
    "the key": lambda: {"key": jax.random.key(1)},
}


def recipe_of(plan, scored=None):
    """Returns what a run is, and what its first step computes, as one value."""
    who, begin = identity(plan, scored), first_snapshot(plan)
    digest = begun_phase(plan, begin)["digest"]
    return tuple(sorted((who["recipe"] | who["begins"] | {"step": digest}).items()))


def test_whatever_a_result_depends_on_is_another_recipe():
    recipes = {name: recipe_of(plan(**make())) for name, make in CHANGES.items()}
    recipes["nothing"] = recipe_of(plan())
    recipes["a score"] = recipe_of(plan(), ("max", max))
    recipes["another score"] = recipe_of(plan(), ("max", min))
    recipes["the lowest score"] = recipe_of(plan(), ("min", max))
    assert len(set(recipes.values())) == len(recipes)
    assert recipe_of(plan()) == recipes["nothing"]
    # Without statistics every norm computes the same.
    assert recipe_of(plan(norm="batch")) == recipes["nothing"]
    assert recipe_of(plan(steps=9)) == recipes["nothing"]  # more of them continue it
    assert (
        len({identity(plan(**make()))["base"]["base"] for make in CHANGES.values()})
        == 1
    )


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


def test_a_value_that_is_read_through_a_module_is_described(tmp_path, monkeypatch):
    (tmp_path / "their_settings.py").write_text("T = 1.0")
    (tmp_path / "their_losses.py").write_text(
        "import their_settings as settings\ndef f(x, rng):\n return settings.T * x"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module, f = map(importlib.import_module, ("their_settings", "their_losses"))
    before = described(f.f)
    assert described(f.f) == before
    module.T = 5.0
    assert described(f.f) != before


def test_a_library_in_a_folder_of_its_own_is_known_by_name(tmp_path, monkeypatch):
    """As `pip install --target` and `--user` put it; a user's file beside it is not."""
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "RECORD").write_text("elsewhere/__init__.py,,\n")
    (tmp_path / "elsewhere").mkdir()
    for name in ("elsewhere/__init__.py", "own.py"):
        (tmp_path / name).write_text("def f(x): return x")
    monkeypatch.syspath_prepend(tmp_path)
    theirs, own = (importlib.import_module(name).f for name in ("elsewhere", "own"))
    assert described(theirs) == "elsewhere.f tuple()"
    assert "list(tuple(bytes" in described(own)


def test_a_checkout_that_was_built_is_still_a_users_code(tmp_path, monkeypatch):
    """`pip install -e` leaves a folder beside the sources, and no list of them."""
    (tmp_path / "mine.egg-info").mkdir()
    (tmp_path / "mine.py").write_text("def f(x): return x")
    monkeypatch.syspath_prepend(tmp_path)
    assert "list(tuple(bytes" in described(importlib.import_module("mine").f)


class Callable(list):
    """A list with a method of its own."""

    def __call__(self, x, rng):
        return [self[0] * x]


class Kind(enum.Enum):
    one = 1

    def __call__(self, x, rng):
        return x


@dataclasses.dataclass
class Plain(abc.ABC):
    scale: float = 1.0

    def __call__(self, x, rng):
        return self.scale * x


class Pair(NamedTuple):
    scale: float = 1.0

    def __call__(self, x, rng):
        return self.scale * x


def local_import(x, rng):
    from math import sqrt

    return sqrt(2) * x


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Callable([1.0]), "'Callable' cannot be read exactly"),
        (Kind.one, "'Kind' cannot be read exactly"),
        (Plain(), "'Plain' cannot be read exactly"),
        (Pair(), "'Pair' cannot be read exactly"),
        (Scale(1), "'Scale' cannot be read exactly"),
        (Scale(1).apply, "'Scale.apply' cannot be read exactly"),
        (partial(lambda kind, x, rng: x, Kind.one), "'Kind' cannot be read exactly"),
        (lambda x, rng: Scale(2).apply(x), "'Scale' cannot be read exactly"),
        (np.random.default_rng(0).normal, "'Generator.normal' cannot be read exactly"),
        (local_import, "'local_import' imports when it is called"),
        (kinds.reverse(1.0), "'.*same' has a gradient of its own"),
    ],
)
def test_classes_objects_and_late_imports_need_a_name(value, name):
    """A class has methods, an object a state: what they compute is not in a list of values."""
    with pytest.raises(InputError, match=f"{name}.*st.named"):
        described(value)
    assert described(named("mine", value)) == "named mine"


def test_a_graph_of_calls_is_described_once():
    scope = {"__name__": "mine"}
    lines = [f"def f{i}(x): return f{i + 1}(x) + f{i + 2}(x)" for i in range(40)]
    exec(compile("\n".join(lines), __file__, "exec"), scope)
    assert len(described(scope["f0"])) < 40_000
