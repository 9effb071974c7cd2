"""Values of deltas worked out by hand: names, factors, meaning, sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import subtune_jax as st
from subtune_jax import deltas, tree
from subtune_jax.deltas import elements
from subtune_jax.deltas.delta import Delta, Elements, base_fingerprint
from subtune_jax.deltas.extract import difference
from subtune_jax.deltas.file import header
from subtune_jax.errors import InputError
from subtune_jax.network import Source, Tokens
from subtune_jax.tuning.lora import Factors, low_rank
from tests import toy
from tests.models.test_reference import CASES, loaded
from tests.serving import tasks


def named(network, classes):
    source = network.source or Source()
    return network._replace(source=source._replace(classes=classes))


def test_as_many_classes_of_other_names_are_written(tmp_path):
    """The base's names, in an order that is not the alphabet's, give way to the task's."""
    source = tmp_path / "source"
    source.mkdir()
    network = loaded(CASES["bert, gelu"], source)
    config = json.loads((source / "config.json").read_text())
    config |= {"id2label": {"0": "up", "1": "down", "2": "left"}}
    (source / "config.json").write_text(json.dumps(config))
    network = st.load_pretrained(source)
    count = len(network.params["head"]["bias"])
    names = ("right", "left", "away")[:count]
    merged = deltas.merge(named(network, names), tmp_path / "merged")
    written = json.loads((merged.folder / "config.json").read_text())
    assert list(written["id2label"].values()) == list(names)
    assert st.load_pretrained(merged.folder).source.classes == names


def test_a_product_that_is_off_in_one_element_is_refused():
    network = toy.mlp()
    a, b = np.ones((6, 1), np.float32), np.full((1, 6), 0.25, np.float32)
    factors = {"two/kernel": Factors(a, b, 1.0)}
    kernel = low_rank(network.params["two"]["kernel"], factors["two/kernel"])
    for off in (0.0, 0.01):
        params = {**network.params}
        params["two"] = {**params["two"], "kernel": kernel.at[3, 4].add(off)}
        tuned = network._replace(params=params)
        if off:
            with pytest.raises(InputError, match=r"do not give the tuned kernel"):
                st.extract(network, tuned, factors=factors)
        else:
            assert st.extract(network, tuned, factors=factors).factors


def test_a_base_with_another_kind_of_head_means_something_else():
    """Of the two, only the delta's base was loaded with an option for its head."""
    reads = Tokens(40, 2, 12)
    base = toy.mlp()._replace(source=Source(reads=reads, options={"head": "pooler"}))
    delta = st.extract(base, tasks.changed(base, ["two"]))
    st.apply(base, delta)
    for options in ({}, {"head": "linear"}):
        other = base._replace(source=Source(reads=reads, options=options))
        with pytest.raises(InputError, match="belongs to a base with head 'pooler'"):
            st.apply(other, delta)


def test_four_fifths_of_a_tensor_are_stored_as_elements():
    """(32 + 1.5 + log2(10 / 8)) * 0.8 bits an element are fewer than 32, and with all of
    them changed more."""
    rng = np.random.default_rng(0)
    base = {"one": {"kernel": rng.normal(size=(100, 100)).astype(np.float32)}}

    def network(params):
        stage = st.Stage("one", lambda p, s, x, **rest: (x @ p["kernel"], s))
        return st.Network((stage,), params, {"one": {}}, {})

    for changed, whole in ((8_000, False), (10_000, True)):
        kernel = base["one"]["kernel"].copy().ravel()
        kernel[rng.permutation(10_000)[:changed]] += 1
        tuned = network({"one": {"kernel": kernel.reshape(100, 100)}})
        delta = st.extract(network(base), tuned)
        assert ("params/one/kernel" in delta.whole) == whole
        assert ("params/one/kernel" in delta.elements) != whole


def test_a_task_has_its_own_classes_and_undo_gives_back_the_base_s():
    base = named(toy.mlp(), ("cat", "ant", "bee"))
    tuned = named(tasks.with_head(base, 2, 1), ("no", "maybe"))
    after, overwritten = st.apply(base, st.extract(base, tuned))
    assert after.source.classes == ("no", "maybe")
    assert st.undo(after, overwritten).source.classes == ("cat", "ant", "bee")


def test_a_kernel_of_three_axes_keeps_its_low_rank_change():
    """[8, 2, 4] is a map of 8 inputs to 2 x 4 outputs: rank 1 has 8 + 8 numbers."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 4)), jnp.float32)

    def apply(params, stats, x, *, batch_stats, key):
        return jnp.tanh(jnp.einsum("bi,ihd->bhd", x, params["kernel"])), stats

    flat = st.Stage("flat", lambda p, s, x, **rest: (x.reshape(len(x), 8), s))
    base = st.Network(
        (st.Stage("query", apply), flat, toy.mlp().stages[2]),
        {"query": {"kernel": kernel}, "flat": {}, "head": toy.mlp(8).params["head"]},
        {"query": {}, "flat": {}, "head": {}},
        {},
    )
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(8, 1)), rng.normal(size=(1, 8))
    factors = {"query/kernel": Factors(np.float32(a), np.float32(b), 0.5)}
    tuned_kernel = kernel + 0.5 * np.reshape(a @ b, (8, 2, 4)).astype(np.float32)
    tuned = base._replace(params={**base.params, "query": {"kernel": tuned_kernel}})
    delta = deltas.from_bytes(deltas.to_bytes(st.extract(base, tuned, factors=factors)))
    assert delta.factors["params/query/kernel"].a.shape == (8, 1)
    again, _ = st.apply(base, delta)
    np.testing.assert_allclose(again.params["query"]["kernel"], tuned_kernel, atol=1e-6)
    x = rng.normal(size=(3, 8)).astype(np.float32)
    mixed = st.serving.Mixed(base)
    mixed.put("task", delta)
    np.testing.assert_allclose(mixed(x, ["task"] * 3), st.predict(again, x), atol=1e-5)


def test_a_delta_of_no_change_holds_the_head_alone():
    base = toy.mlp()
    delta = st.extract(base, base)
    assert isinstance(delta, Delta) and not delta.elements and not delta.factors
    assert sorted(delta.whole) == ["params/head/bias", "params/head/kernel"]
    assert delta.about["base"]["arrays"] == base_fingerprint(base)
    head = jax.tree.map(np.asarray, base.params["head"])
    assert tree.nbytes(dict(delta.whole)) == tree.nbytes(head) == 4 * (6 * 3 + 3)


def mixed_types():
    """A delta of elements of two types, and a whole tensor that is not square."""
    base, about = toy.mlp(), st.extract(toy.mlp(), toy.mlp()).about
    elements = {
        "params/one/kernel": Elements((4, 6), np.array([1, 5]), np.float32([0.5, -2])),
        "params/two/bias": Elements((6,), np.array([0]), np.float64([1 / 3])),
        "params/two/kernel": Elements((6, 6), np.array([7]), np.float32([9])),
    }
    whole = {"params/one/bias": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return base, Delta(whole, elements, {}, about)


def test_elements_of_several_types_come_back():
    _, delta = mixed_types()
    back = deltas.from_bytes(deltas.to_bytes(delta))
    for path, some in delta.elements.items():
        assert back.elements[path].values.dtype == some.values.dtype
        np.testing.assert_array_equal(back.elements[path].values, some.values)
        np.testing.assert_array_equal(back.elements[path].places, some.places)


def test_a_file_whose_tensor_has_another_shape_is_damaged():
    """[2, 3] and [3, 2] have the same bytes."""
    _, delta = mixed_types()
    data = deltas.to_bytes(delta)
    assert data.count(b"[2,3]") == 1
    with pytest.raises(InputError, match="its digest does not hold"):
        deltas.from_bytes(data.replace(b"[2,3]", b"[3,2]"))


def test_a_base_with_another_pooling_means_something_else():
    """Of the two, only the delta's base was loaded with an option for its pooling."""
    reads = Tokens(40, 2, 12)
    base = toy.mlp()._replace(source=Source(reads=reads, options={"pooling": "mean"}))
    delta = st.extract(base, tasks.changed(base, ["two"]))
    st.apply(base, delta)
    other = base._replace(source=Source(reads=reads))
    with pytest.raises(InputError, match="belongs to a base with pooling 'mean'"):
        st.apply(other, delta)


def test_a_task_without_class_names_does_not_answer_with_those_of_the_base():
    base = named(toy.mlp(), ("cat", "dog", "owl"))
    delta = st.extract(base, tasks.changed(base, ["two"]))
    assert st.apply(base, delta)[0].source.classes == ("cat", "dog", "owl")
    about = {k: v for k, v in delta.about.items() if k != "classes"}
    tuned, before = st.apply(base, delta._replace(about=about))
    assert tuned.source.classes == ()
    assert st.undo(tuned, before).source.classes == ("cat", "dog", "owl")


def test_what_was_taken_is_as_long_as_its_places(monkeypatch):
    """An accelerator fills places up to a power of two: here, 6 of 36 elements to 8."""

    def swapped(leaf, places, values, donate=False):
        return elements._swap(leaf, *elements._padded(leaf, places, values))

    monkeypatch.setattr("subtune_jax.deltas.swap.swapped", swapped)
    base = toy.mlp()
    delta = tasks.elements_delta(base, "two/kernel")
    tuned, before = st.apply(base, delta)
    some, places = before.elements["params/two/kernel"], range(0, 36, 7)
    assert some.places.tolist() == [*places]
    flat = np.ravel(base.params["two"]["kernel"])
    np.testing.assert_array_equal(some.values, flat[[*places]])
    back = st.undo(tuned, before)
    assert tree.fingerprint(back.params) == tree.fingerprint(base.params)


def test_what_changed_outside_of_the_chosen_elements_is_stored_too():
    """Places 1 and 4 are chosen; 4 and 6 changed."""
    old = np.arange(8, dtype=np.float32)
    new = old + np.float32([0, 0, 0, 0, 1, 0, 1, 0])
    some = difference(old, new, [1, 4])
    assert some.places.tolist() == [1, 4, 6] and some.values.tolist() == [1, 5, 7]


def test_a_tuned_network_of_another_type_is_no_change_of_the_base():
    """Half as many bytes could not be compared with those of the base."""
    base = toy.mlp()
    two = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base.params["two"])
    tuned = base._replace(params={**base.params, "two": two})
    with pytest.raises(InputError, match=r"two/bias.*float32.*in the base.*bfloat16"):
        st.extract(base, tuned)


def test_given_classes_are_those_of_the_network():
    base = named(toy.mlp(), ("cat", "dog", "owl"))
    st.extract(base, base, classes=["cat", "dog", "owl"])
    with pytest.raises(InputError, match="leave classes= out, the network has its own"):
        st.extract(base, base, classes=["cat", "owl", "dog"])


def test_the_type_of_most_leaves_is_written_once():
    """Of float64, float32 and float32; with another choice equal deltas would be other
    files."""
    _, delta = mixed_types()
    first, second = "params/one/kernel", "params/two/bias"
    some = dict(delta.elements)
    some[first] = some[first]._replace(values=np.ones(2))
    some[second] = some[second]._replace(values=np.ones(1, np.float32))
    data = deltas.to_bytes(delta._replace(elements=some))
    assert header(data)["dtype"] == "float32"
    assert deltas.from_bytes(data).elements[first].values.dtype == np.float64


def test_every_type_of_a_tensor_comes_back():
    _, delta = mixed_types()
    names = "bool int8 uint16 int64 float16 bfloat16 float64".split()
    whole = {f"params/{n}/x": np.array([0, 1, 1]).astype(jnp.dtype(n)) for n in names}
    back = deltas.from_bytes(deltas.to_bytes(delta._replace(whole=whole))).whole
    for path, array in whole.items():
        assert back[path].dtype == array.dtype
        assert back[path].tobytes() == array.tobytes()
