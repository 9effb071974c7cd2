"""What is exported gives the same bits in a process that has jax alone."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax.errors import InputError
from subtune_jax.serving.exported import export
from subtune_jax.serving.mixed import Mixed
from subtune_jax.serving.trunk import plan
from tests.serving import tasks

ALONE = """
import sys
import jax
import jax.export
import numpy as np

function = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
given = np.load(sys.argv[2])
outputs = function.call(*(given[name] for name in sorted(given)))
outputs = outputs if isinstance(outputs, dict) else {"rows": outputs}
np.savez(sys.argv[3], **outputs)
ours = [n for n in sys.modules if n.partition(".")[0] in ("subtune_jax", "flax", "optax")]
assert not ours, ours
"""


def in_new_process(file, tmp_path, *inputs):
    np.savez(tmp_path / "in.npz", **{f"x{i}": x for i, x in enumerate(inputs)})
    run = [sys.executable, "-c", ALONE, str(file), "in.npz", "out.npz"]
    subprocess.run(run, cwd=tmp_path, check=True, timeout=300)
    return dict(np.load(tmp_path / "out.npz"))


def here(file, *inputs):
    return jax.export.deserialize(bytearray(file.read_bytes())).call(*inputs)


def test_a_trunk_and_a_mixed_batch_in_a_process_with_jax_alone(tmp_path):
    network, deltas, x, expected = tasks.expected("mlp")
    file = export(plan(network, deltas, capacity=2), x, tmp_path / "trunk.jaxexport")
    outputs = in_new_process(file, tmp_path, x)
    assert outputs.keys() == deltas.keys()
    for name, own in here(file, jnp.asarray(x)).items():
        np.testing.assert_array_equal(outputs[name], own)
        np.testing.assert_allclose(own, expected[name], rtol=1e-5, atol=1e-5)
    mixed = Mixed(network, all_by_row=True)
    for name, delta in deltas.items():
        mixed.put(name, delta)
    file = export(mixed, x, tmp_path / "mixed.jaxexport")
    named = json.loads((tmp_path / "mixed.jaxexport.json").read_text())["tasks"]
    assert [one["name"] for one in named] == list(deltas)
    numbers = (np.arange(12) * 5 % 9).astype(np.int32)
    rows = in_new_process(file, tmp_path, x, numbers)["rows"]
    np.testing.assert_array_equal(rows, here(file, jnp.asarray(x), numbers))
    for i, number in enumerate(numbers):
        name, count = named[number]["name"], named[number]["outputs"]
        np.testing.assert_allclose(
            rows[i, :count], expected[name][i], rtol=1e-5, atol=1e-5, err_msg=name
        )
        assert (rows[i, count:] == np.finfo(np.float32).min).all()
    odd = np.concatenate([[9, -1], numbers[2:]]).astype(np.int32)
    unknown = here(file, jnp.asarray(x), odd)
    assert np.isnan(unknown[:2]).all() and not np.isnan(unknown[2:]).any()


def test_what_cannot_be_exported_is_one_sentence(tmp_path):
    network, deltas, x, _ = tasks.expected("mlp")
    file = tmp_path / "file"
    with pytest.raises(InputError, match="^expected a Trunk or a Mixed, got Network"):
        export(network, x, file)
    mixed = Mixed(network)
    with pytest.raises(InputError, match="^there is no task to export"):
        export(mixed, x, file)
    mixed.put("low", deltas["low"])
    with pytest.raises(InputError, match="^a task runs one alone.*all_by_row=True"):
        export(mixed, x, file)
    with pytest.raises(InputError, match="^file must be a path, got NoneType"):
        export(mixed, x, None)
    with pytest.raises(InputError, match="^stage 'one' cannot take its input"):
        export(plan(network, deltas), np.zeros((2, 9), np.float32), file)
    with pytest.raises(InputError, match="^cannot write "):
        export(plan(network, deltas), x, tmp_path / "no" / "file")
    assert not list(tmp_path.iterdir())
