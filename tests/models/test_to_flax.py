"""The way back: the user's own module, variables or checkpoint gives the same outputs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import subtune_jax as st
from subtune_jax import tree
from subtune_jax.deltas.delta import flat
from subtune_jax.errors import InputError
from subtune_jax.training.predict import predict
from tests import toy

KEY, DATA = jax.random.key(0), toy.points(24)


class Theirs(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List(
            [nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)]
        )
        self.norm, self.drop = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(self.drop(self.norm(x)))


def tuned(network, norm="stored"):
    phase = st.Phase(st.select(network, {"g": [".*"]}), st.adam(1e-2), 6)
    return st.fit(
        network, phase, DATA, key=KEY, settings=st.Settings(batch_size=8, norm=norm)
    ).network


def outputs(module):
    module.eval()
    return np.asarray(jax.jit(lambda x: module(x))(DATA.x))


def test_an_nnx_model_comes_back_with_its_list_and_its_statistics():
    module = Theirs(0)
    before = outputs(Theirs(0))
    network = tuned(st.from_nnx(module), norm="batch")
    back = st.models.to_nnx(network, module)
    # Another program: XLA fuses it in another way.
    np.testing.assert_allclose(outputs(back), predict(network, DATA), atol=1e-6)
    assert tree.fingerprint(flat(st.from_nnx(back))) == tree.fingerprint(flat(network))
    np.testing.assert_array_equal(outputs(module), before)  # the original is as it was
    assert isinstance(back, Theirs) and back.drop.rate == 0.5
    mean = network.stats["model"]["norm"]["mean"]
    np.testing.assert_array_equal(back.norm.mean[...], mean)
    assert np.any(np.asarray(mean) != 0)
    nnx.Optimizer(back, __import__("optax").sgd(0.1), wrt=nnx.Param)  # it trains on


def test_stages_come_back_as_a_dict_of_modules():
    rngs = nnx.Rngs(0)
    modules = {"body": nnx.Linear(4, 6, rngs=rngs), "head": nnx.Linear(6, 3, rngs=rngs)}
    network = tuned(st.from_nnx(modules))
    back = st.models.to_nnx(network, modules)
    x = back["head"](back["body"](DATA.x))
    np.testing.assert_allclose(x, network(DATA.x), rtol=1e-6)
    bigger = st.replace_head(network, 5)
    with pytest.raises(
        InputError, match=r"'head' has 'bias' as \(5,\) and the module as"
    ):
        st.models.to_nnx(bigger, modules)
    new = modules | {"head": nnx.Linear(6, 5, rngs=rngs)}
    assert st.models.to_nnx(bigger, new)["head"].kernel.shape == (6, 5)
    with pytest.raises(
        InputError, match="has the stages body, head and the modules are m"
    ):
        st.models.to_nnx(network, Theirs(0))
    with pytest.raises(
        InputError, match="stage 'head' is a str: expected an nnx.Module"
    ):
        st.models.to_nnx(network, modules | {"head": "linear"})


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train, name="norm")(x)
        return linen.Dense(3, name="out")(x)


def test_linen_variables_come_back():
    module = Linen()
    network = tuned(st.from_linen(module, module.init(KEY, DATA.x)), norm="batch")
    variables = st.models.to_linen(network)
    assert set(variables) == {"params", "batch_stats"}
    ours = jax.jit(lambda x: module.apply(variables, x))(DATA.x)
    np.testing.assert_allclose(ours, predict(network, DATA), atol=1e-6)
    again = st.from_linen(module, variables)
    np.testing.assert_array_equal(predict(again, DATA), predict(network, DATA))
    with pytest.raises(InputError, match="expected one that from_linen made"):
        st.models.to_linen(toy.mlp())


def linen_outputs(network):
    variables = st.models.to_linen(network)
    return np.asarray(jax.jit(lambda x: Linen().apply(variables, x))(DATA.x))


def linen_network():
    return st.from_linen(Linen(), Linen().init(KEY, DATA.x))


BACK = """
import sys
import numpy as np
import subtune_jax as st
from tests.models.test_to_flax import Theirs, linen_network, linen_outputs, outputs

nnx_file, linen_file, out = sys.argv[1:]
theirs = Theirs(0)
back = st.models.to_nnx(st.open_task(nnx_file, st.from_nnx(theirs)), theirs)
variables = linen_outputs(st.open_task(linen_file, linen_network()))
np.savez(out, nnx=outputs(back), linen=variables)
"""


@pytest.mark.slow
def test_users_models_predict_bit_for_bit_the_same_in_another_process(tmp_path):
    theirs, files = Theirs(0), [tmp_path / "nnx.delta", tmp_path / "linen.delta"]
    bases = st.from_nnx(theirs), linen_network()
    after = [tuned(base, norm="batch") for base in bases]
    for base, network, file in zip(bases, after, files, strict=True):
        st.extract(base, network).save(file)
    command = [sys.executable, "-c", BACK, *map(str, files), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True)
    there = np.load(tmp_path / "out.npz")
    here = outputs(st.models.to_nnx(after[0], theirs))
    np.testing.assert_array_equal(there["nnx"], here)
    np.testing.assert_array_equal(there["linen"], linen_outputs(after[1]))


def test_a_checkpoint_comes_into_a_network_of_numpy_and_refuses_other_leaves(tmp_path):
    network = toy.mlp()
    arrays = network._replace(params=jax.tree.map(np.asarray, network.params))
    st.models.to_orbax(arrays, tmp_path / "one")
    back = st.models.from_orbax(arrays, tmp_path / "one")
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back.params))
    assert tree.fingerprint(flat(back)) == tree.fingerprint(flat(network))
    from orbax.checkpoint.experimental import v1 as ocp

    ocp.save(tmp_path / "two", {"params": network.params, "step": 3})
    with pytest.raises(
        InputError, match="two is not a checkpoint of the network: 'step'"
    ):
        st.models.from_orbax(network, tmp_path / "two")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_orbax_checkpoint_comes_back(tmp_path, dtype):
    network = toy.small_resnet() if dtype == jnp.float32 else toy.mlp(dtype=dtype)
    st.models.to_orbax(network, tmp_path / "one")
    zeros = jax.tree.map(jnp.zeros_like, network.params)
    back = st.models.from_orbax(network._replace(params=zeros), tmp_path / "one")
    assert tree.fingerprint(flat(back)) == tree.fingerprint(flat(network))
    with pytest.raises(
        InputError, match="one is there already: give a folder that is not"
    ):
        st.models.to_orbax(network, tmp_path / "one")
    with pytest.raises(InputError, match="there is no checkpoint .*two"):
        st.models.from_orbax(network, tmp_path / "two")
    with pytest.raises(InputError, match="one is not a checkpoint of the network"):
        st.models.from_orbax(toy.mlp(width=9), tmp_path / "one")


EIGHT = """
import sys
import subprocess
import sys

import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
import numpy as np
import subtune_jax as st
from subtune_jax.deltas import elements
from subtune_jax.deltas.delta import flat
from subtune_jax import tree
from tests import toy

one, folder = toy.small_resnet(), sys.argv[1]
whole = st.placement(8).whole
eight = one._replace(params=whole(one.params), stats=whole(one.stats))
st.models.to_orbax(eight, f"{folder}/eight")
st.models.to_orbax(one, f"{folder}/one")
for network, name, devices in ((one, "eight", 1), (eight, "one", 8)):
    zeros = jax.tree.map(jnp.zeros_like, network.params)
    back = st.models.from_orbax(network._replace(params=zeros), f"{folder}/{name}")
    assert tree.fingerprint(flat(back)) == tree.fingerprint(flat(one))
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(back.params)} == {devices}
tuned = st.replace_head(eight, 3)
mesh = jax.sharding.Mesh(jax.devices(), "d")
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "d"))
wide = st.replace_head(eight, 8)
kernel = jax.device_put(wide.params["head"]["kernel"], split)
wide.params["head"]["kernel"] = kernel
narrow, _ = st.apply(wide, st.extract(one, tuned))  # three classes on eight devices
assert narrow.params["head"]["kernel"].shape[1] == 3
index, padded = elements._padded(kernel, np.arange(5), np.ones(5, "float32"))
swapped, _ = elements._swap(kernel, index, padded)
assert float(swapped.sum()) == 5
after, overwritten = st.apply(eight, st.extract(one, tuned))
assert {len(leaf.devices()) for leaf in jax.tree.leaves(after.params)} == {8}
assert tree.fingerprint(flat(st.undo(after, overwritten))) == tree.fingerprint(flat(one))
print("right")
"""


@pytest.mark.slow
def test_checkpoints_and_deltas_go_from_one_device_to_eight_and_back(tmp_path):
    command = [sys.executable, "-c", EIGHT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr
