"""What a task changed comes back bit for bit, and goes again bit for bit."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.numpy import save_file

from subtune_jax import deltas, tree
from subtune_jax.deltas.delta import flat
from subtune_jax.errors import InputError
from subtune_jax.head import replace_head
from subtune_jax.models.load import load_pretrained
from subtune_jax.network import Network, Stage, remat
from subtune_jax.selection.select import select
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.lora import lora, lora_factors
from tests import toy
from tests.fixtures.weights import weights
from tests.models.test_reference import CASES, loaded
from tests.tuning.test_contract import TUNINGS, setup

KEY = jax.random.key(0)


def bits(network):
    return tree.fingerprint(flat(network))


def assert_round_trip(base, tuned, **settings):
    delta = deltas.extract(base, tuned, **settings)
    data = deltas.to_bytes(delta)
    again = deltas.from_bytes(data)
    assert deltas.to_bytes(again) == data
    after, overwritten = deltas.apply(base, again)
    assert bits(after) == bits(tuned)
    assert bits(deltas.undo(after, overwritten)) == bits(base)
    return delta


@pytest.mark.parametrize("name", TUNINGS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_every_tuning_comes_back_and_goes_again(name, dtype):
    network, phase = setup(name, toy.mlp(dtype=dtype))
    phase = phase._replace(steps=6)
    tuned = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    delta = assert_round_trip(network, tuned)
    changed = delta.whole.keys() | delta.elements.keys()
    assert {p for p in changed if "/head/" not in p} <= {
        "params/two/kernel",
        "params/two/bias",
    }
    if name == "fixed_mask":
        assert len(delta.elements["params/two/kernel"].places) <= 18


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("network", [toy.mlp, toy.small_resnet])
def test_low_rank_factors_are_kept_as_factors(network, dtype):
    network = network(dtype=dtype) if network is toy.mlp else network()
    data = toy.points() if "two" in network.params else toy.images()
    groups = {"body": ["two" if "two" in network.params else "block2_0"]}
    labels = select(network, groups | {"head": ["head"]})
    phase = Phase(labels, adam(1e-2), 6, lora(2, alpha=1.4))
    result = fit(network, phase, data, key=KEY, settings=Settings(batch_size=8))
    tuned, factors = result.network, lora_factors(result.trainable, scale=0.7)
    delta = assert_round_trip(network, tuned, factors=factors)
    kernels = {f"params/{path}" for path in factors}
    assert kernels == delta.factors.keys() and not delta.elements
    assert all("/head/" in path for path in delta.whole)
    held = sum(a.size + b.size for a, b, _ in delta.factors.values())
    head = sum(array.nbytes for array in delta.whole.values())
    size = (
        len(deltas.to_bytes(delta))
        - head
        - held * delta.factors[min(kernels)].a.itemsize
    )
    assert size < 3000  # the header
    arrays = network._replace(params=jax.tree.map(np.asarray, network.params))
    after, _ = deltas.apply(arrays, delta)
    assert isinstance(flat(after)[min(kernels)], np.ndarray)
    assert bits(after) == bits(tuned)


def test_factors_of_another_run_or_scale_are_refused():
    network, phase = setup("lora")
    result = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    factors = lora_factors(result.trainable)
    wrong = {path: some._replace(scale=3.0) for path, some in factors.items()}
    with pytest.raises(InputError, match="'params/two/kernel' do not give the tuned"):
        deltas.extract(network, result.network, factors=wrong)
    with pytest.raises(InputError, match="unknown kernel with factors 'params/tw/k"):
        renamed = {"tw/kernel": factors["two/kernel"]}
        deltas.extract(network, result.network, factors=renamed)
    with pytest.raises(
        InputError, match="these leaves have no factors: tune with lora"
    ):
        lora_factors(network.params)


def test_a_head_tuned_by_lora_is_stored_as_a_whole():
    network = toy.mlp()
    labels = select(network, {"g": ["two", "head"]})
    phase = Phase(labels, adam(1e-2), 6, lora(2, free=()))
    result = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    )
    factors = lora_factors(result.trainable)
    assert "head/kernel" in factors
    delta = assert_round_trip(network, result.network, factors=factors)
    assert delta.factors.keys() == {"params/two/kernel"}
    assert "params/head/kernel" in delta.whole


def test_a_network_that_rematerializes_keeps_its_head():
    network, phase = setup("subset")
    tuned = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    for base, after in ((remat(network), remat(tuned)), (network, remat(tuned))):
        delta = assert_round_trip(base, after)
        assert delta.about["head"]["kind"] == "linear"
        applied, _ = deltas.apply(network, delta)
        np.testing.assert_array_equal(applied(toy.points().x), tuned(toy.points().x))


def test_a_base_that_reads_something_else_is_refused(tmp_path):
    network = loaded(CASES["resnet, group norm"], tmp_path)
    delta = deltas.extract(network, network)
    assert delta.about["reads"]["mean"] == [0.485, 0.456, 0.406]
    config = json.loads((tmp_path / "config.json").read_text())
    config["normalization"]["mean"] = [0.5, 0.5, 0.5]
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = r"a base with mean \[0.485, 0.456, 0.406\], and this network has \[0.5"
    with pytest.raises(InputError, match=message):
        deltas.open_task(delta)
    case = CASES["bert, gelu"]
    save_file(weights(case["tensors"]), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    mean, first = (load_pretrained(tmp_path, 2, pooling=p) for p in ("mean", "cls"))
    delta = deltas.extract(mean, mean)
    with pytest.raises(InputError, match="with pooling 'mean', .* has 'cls': load the"):
        deltas.open_task(delta, first)
    (tmp_path / "vocab.txt").write_text("other")
    assert bits(deltas.open_task(delta, mean)) == bits(mean)
    named = deltas.extract(*[load_pretrained(tmp_path, 2, pooling="mean")] * 2)
    (tmp_path / "vocab.txt").write_text("another")
    with pytest.raises(InputError, match="belongs to a base with tokenizer '"):
        deltas.open_task(named)


def test_a_base_is_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "w" / "rn").mkdir(parents=True)
    loaded(CASES["resnet, group norm"], tmp_path / "w" / "rn")
    monkeypatch.chdir(tmp_path)
    network = load_pretrained("w/rn")
    deltas.save(deltas.extract(network, network), "task.delta")
    monkeypatch.chdir("/")
    opened = deltas.open_task(tmp_path / "task.delta")
    assert bits(opened) == bits(network)


def test_undo_of_another_network_is_refused():
    network, phase = setup("subset")
    tuned = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    _, overwritten = deltas.apply(network, deltas.extract(network, tuned))
    with pytest.raises(
        InputError, match=r"the network has no 'params/two/\w+' of shape"
    ):
        deltas.undo(toy.mlp(width=7), overwritten)


def test_a_scalar_leaf_comes_back():
    base, tuned = (one_leaf(jnp.float32(value)) for value in (1.0, 2.0))
    assert assert_round_trip(base, tuned).whole["params/only/w"].shape == ()


def test_statistics_and_a_head_of_another_size_are_part_of_it():
    base = toy.small_resnet()
    network = replace_head(base, 5, KEY, init=jax.nn.initializers.lecun_normal())
    phase = Phase(select(network, {"g": ["block2_0", "head"]}), adam(1e-2), 4)
    data = toy.images(24)
    tuned = fit(
        network,
        phase,
        data,
        key=KEY,
        settings=Settings(batch_size=8, norm="tuned"),
    ).network
    delta = assert_round_trip(base, tuned)
    assert any(path.startswith("stats/block2_0") for path in delta.whole)
    assert delta.whole["params/head/kernel"].shape[1] == 5
    assert not any("block1_0" in path for path in delta.whole)
    after, _ = deltas.apply(base, delta)
    np.testing.assert_array_equal(after(data.x), tuned(data.x))


def test_a_head_that_normalizes_brings_its_statistics_and_its_kind():
    base = toy.mlp()
    tuned = replace_head(base, 4, normalize="batch_affine")
    delta = assert_round_trip(base, tuned)
    assert "stats/head/norm/mean" in delta.whole
    after, overwritten = deltas.apply(base, delta)
    x = toy.points().x
    np.testing.assert_array_equal(after(x), tuned(x))
    np.testing.assert_array_equal(deltas.undo(after, overwritten)(x), base(x))


def test_a_head_keeps_its_own_type_whatever_the_head_of_the_base_has():
    base = toy.mlp(dtype=jnp.bfloat16)
    draw = jax.nn.initializers.lecun_normal()
    tuned = replace_head(base, 3, KEY, init=draw)  # float32, of the same shape
    assert_round_trip(base, tuned)
    rounded = deltas.extract(base, tuned, values="bfloat16")
    after, _ = deltas.apply(base, deltas.from_bytes(deltas.to_bytes(rounded)))
    assert after.params["head"]["kernel"].dtype == jnp.float32


def test_what_is_stored_beside_is_json_and_takes_no_name_of_the_delta_s_own():
    network = toy.mlp()
    with pytest.raises(
        InputError, match="'metrics' cannot be stored as JSON: .*float32"
    ):
        deltas.extract(network, network, metrics={"accuracy": np.float32(1)})
    with pytest.raises(InputError, match="'head' has a meaning of its own in a delta"):
        deltas.extract(network, network, head="linear")
    with pytest.raises(InputError, match="network must be a Network, got int"):
        deltas.open_task(deltas.extract(network, network), 3)


def one_leaf(values):
    def apply(params, stats, x, *, batch_stats, key):
        return x, stats

    return Network((Stage("only", apply),), {"only": {"w": values}}, {"only": {}}, {})


PATTERNS = {  # -0.0, NaNs with payloads, denormals, infinities, as bits
    np.float32: [0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 1, 0x7F800000],
    np.float16: [0x8000, 0x7E01, 0xFE77, 0x7C01, 1, 0x7C00],
    jnp.bfloat16: [0x8000, 0x7FC1, 0xFFC7, 0x7F81, 1, 0x7F80],
}


@settings(max_examples=60, deadline=None)
@given(
    dtype=some.sampled_from(list(PATTERNS)),
    seed=some.integers(0, 10**6),
    count=some.integers(0, 40),
    device=some.booleans(),
)
def test_any_bits_anywhere(dtype, seed, count, device):
    rng = np.random.default_rng(seed)
    size = 8 * np.dtype(dtype).itemsize
    old = rng.integers(0, 2**size, 200, dtype=np.uint64).astype(f"u{size // 8}")
    new = old.copy()
    new[rng.choice(200, count, replace=False)] = rng.choice(PATTERNS[dtype], count)
    put = jnp.asarray if device else np.asarray
    base, tuned = (one_leaf(put(bits_.view(dtype))) for bits_ in (old, new))
    delta = assert_round_trip(base, tuned)
    stored = len(delta.elements.get("params/only/w", ((), (), ()))[1])
    assert delta.whole or stored == int((old != new).sum())


def test_bfloat16_values_are_rounded_before_they_are_tested():
    network, phase = setup("subset")
    tuned = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    delta = deltas.extract(network, tuned, values="bfloat16")
    data = deltas.to_bytes(delta)
    one, _ = deltas.apply(network, delta)
    other, _ = deltas.apply(network, deltas.from_bytes(data))
    assert bits(one) == bits(other) != bits(tuned)
    kernel = tuned.params["two"]["kernel"]
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(one.params["two"]["kernel"], rounded)
    assert len(data) < len(deltas.to_bytes(deltas.extract(network, tuned)))
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), tuned.params)
    assert (
        deltas.extract(*[network._replace(params=halves)] * 2, values="bfloat16")
        .whole["params/head/bias"]
        .dtype
        == np.float16
    )


def test_a_base_before_its_new_head_is_told_what_it_lacks():
    from flax import nnx

    from subtune_jax.models.from_flax import from_nnx

    rngs = nnx.Rngs(0)
    layers = {"one": nnx.Linear(4, 6, rngs=rngs), "head": nnx.Linear(6, 3, rngs=rngs)}
    plain = from_nnx(layers)
    base = replace_head(plain, 5)
    tuned = base._replace(params=jax.tree.map(lambda leaf: leaf + 1, base.params))
    delta = deltas.extract(base, tuned)
    with pytest.raises(
        InputError, match="made after replace_head, so give it the base"
    ):
        deltas.apply(plain, delta)


def test_what_does_not_belong_together_is_refused_and_nothing_is_applied():
    network, phase = setup("subset")
    tuned = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    delta = deltas.extract(network, tuned)
    with pytest.raises(
        InputError, match="the delta belongs to another base: its finger"
    ):
        deltas.apply(tuned, delta)
    with pytest.raises(InputError, match="belongs to another base"):
        deltas.apply(toy.mlp(width=7), delta)
    with pytest.raises(
        InputError, match=r"differ in \d tensors outside the head: 'para"
    ):
        deltas.extract(network, toy.mlp(width=7))
    with pytest.raises(
        InputError, match="unknown form of values 'int8': expected one of"
    ):
        deltas.extract(network, tuned, values="int8")
    with pytest.raises(
        InputError,
        match="does not say where its base is: give base= .in a shell --base",
    ):
        deltas.open_task(delta)
    opened = deltas.open_task(delta, network)
    assert bits(opened) == bits(tuned)


PREDICT = """
import sys, numpy as np
from subtune_jax import deltas
from subtune_jax.training.predict import predict
from tests import toy
network = deltas.open_task(sys.argv[1], toy.mlp())
np.save(sys.argv[2], predict(network, toy.points()))
"""


@pytest.mark.slow
def test_a_new_process_predicts_from_the_file(tmp_path):
    network, phase = setup("subset")
    tuned = fit(
        network, phase, toy.points(), key=KEY, settings=Settings(batch_size=16)
    ).network
    file, out = tmp_path / "task.delta", tmp_path / "outputs.npy"
    deltas.save(deltas.extract(network, tuned, metrics={"accuracy": 97.5}), file)
    subprocess.run([sys.executable, "-c", PREDICT, file, out], check=True)
    from subtune_jax.training.predict import predict

    np.testing.assert_array_equal(np.load(out), predict(tuned, toy.points()))
    assert deltas.load(file).about["metrics"] == {"accuracy": 97.5}


def test_the_chosen_elements_are_stored_whether_or_not_they_moved():
    """A mask of three, of which one moved; another tensor, of which all are chosen."""
    base = toy.mlp()
    kernel = np.array(base.params["two"]["kernel"])
    kernel.flat[7] += 1
    tuned = base._replace(
        params={**base.params, "two": {**base.params["two"], "kernel": kernel}}
    )
    indices = {"two/kernel": np.array([2, 7, 30]), "one/bias": np.arange(6)}
    delta = deltas.from_bytes(
        deltas.to_bytes(deltas.extract(base, tuned, indices=indices))
    )
    places = {path: list(some.places) for path, some in delta.elements.items()}
    assert places == {
        "params/two/kernel": [2, 7, 30],
        "params/one/bias": list(range(6)),
    }
    again, _ = deltas.apply(base, delta)
    assert tree.fingerprint(again.params) == tree.fingerprint(tuned.params)
    alone = deltas.extract(base, tuned)
    assert {path: list(some.places) for path, some in alone.elements.items()} == {
        "params/two/kernel": [7]
    }


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"two/kernle": [0]}, "unknown tensor with indices 'params/two/kernle'"),
        (
            {"two/kernel": [36]},
            "the indices of 'params/two/kernel' must be from 0 to 35",
        ),
        ({"two/kernel": [-1]}, "must be from 0 to 35"),
        ({"two/kernel": [True, False]}, "must be whole numbers in one row"),
        ({"two/kernel": 0.5}, "must be whole numbers in one row"),
    ],
)
def test_indices_of_another_network_are_refused(indices, message):
    network = toy.mlp()
    chosen = {path: np.array(index) for path, index in indices.items()}
    with pytest.raises(InputError, match=message):
        deltas.extract(network, network, indices=chosen)
