import chex
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import tree

TREE = {"a": {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}, "c": jnp.arange(2)}


def test_flatten_names_leaves_by_path_and_unflatten_undoes_it():
    flat = tree.flatten(TREE)
    assert list(flat) == ["a/b", "a/w", "c"]
    back = tree.unflatten(flat)
    chex.assert_trees_all_equal_structs(back, TREE)


def test_partition_and_combine_are_inverse():
    mask = {"a": {"w": True, "b": False}, "c": False}
    chosen, rest = tree.partition(TREE, mask)
    assert list(tree.flatten(chosen)) == ["a/w"]
    assert list(tree.flatten(rest)) == ["a/b", "c"]
    assert tree.combine(chosen, rest)["a"]["w"] is TREE["a"]["w"]
    chex.assert_trees_all_equal_structs(tree.combine(chosen, rest), TREE)


def test_count_and_bytes():
    assert tree.count(TREE) == 11
    assert tree.nbytes(TREE) == 44
    assert tree.count(jax.eval_shape(lambda: TREE)) == 11


def test_copy_survives_donation():
    original = jnp.ones(3)
    jax.jit(lambda x: x + 1, donate_argnums=0)(tree.copy(original))
    assert not original.is_deleted()


def test_fingerprint_sees_every_bit_name_shape_and_dtype():
    base = {"w": np.zeros((2, 2), np.float32)}
    others = [
        {"v": base["w"]},
        {"w": np.zeros(4, np.float32)},
        {"w": np.zeros((2, 2), np.int32)},
        {"w": np.array([[0, 0], [0, 1e-45]], np.float32)},
    ]
    prints = {tree.fingerprint(t) for t in [base, *others]}
    assert len(prints) == 5
    assert tree.fingerprint(base) == tree.fingerprint({"w": jnp.zeros((2, 2))})


def test_the_lowest_of_all_leaves_ties_to_the_first():
    values = {
        "a": np.array([3.0, 1.0]),
        "b": np.array([1.0, 9.0, 0.0]),
        "c": np.ones(2),
    }
    places = tree.lowest(values, 3)
    assert {path: index.tolist() for path, index in places.items()} == {
        "a": [1],
        "b": [0, 2],
        "c": [],
    }
    assert sum(len(index) for index in tree.lowest(values, 7).values()) == 7
