"""A file is read whole or refused in one sentence, whatever was done to it."""

import json

import jax
import numpy as np
import pytest

from subtune_jax import deltas
from subtune_jax.deltas import Delta, Elements
from subtune_jax.deltas.file import header
from subtune_jax.errors import InputError
from subtune_jax.tuning.lora import Factors

ABOUT = {
    "base": {"arrays": "ab" * 32, "file": "", "name": "", "options": {}},
    "head": {
        "stage": "head",
        "kind": "linear",
        "dtypes": {"params/head/kernel": "float16"},
    },
    "classes": ["cat", "dog"],
    "metrics": {"accuracy": 91.25},
}


def a_delta(seed=0):
    rng = np.random.default_rng(seed)
    places = {n: np.sort(rng.choice(300, n, replace=False)) for n in (3, 40)}
    values = {n: rng.normal(size=n).astype(np.float32) for n in places}
    return Delta(
        {"params/head/kernel": rng.normal(size=(4, 2)).astype(np.float16)},
        {
            "params/n/kernel": Elements((300,), places[3], values[3]),
            "params/two/kernel": Elements((15, 20), places[40], values[40]),
        },
        {
            "params/low/kernel": Factors(
                values[40].reshape(20, 2), values[3][:2, None], 0.5
            )
        },
        ABOUT,
    )


def test_what_is_read_is_what_was_written():
    delta = a_delta()
    again = deltas.from_bytes(deltas.to_bytes(delta))
    assert again.about == ABOUT
    assert again.elements.keys() == delta.elements.keys()
    for path, some in delta.elements.items():
        assert again.elements[path].shape == some.shape
        np.testing.assert_array_equal(again.elements[path].places, some.places)
        np.testing.assert_array_equal(again.elements[path].values, some.values)
    for path, array in delta.whole.items():
        np.testing.assert_array_equal(again.whole[path], array)
        assert again.whole[path].dtype == array.dtype
    for path, factors in delta.factors.items():
        np.testing.assert_array_equal(again.factors[path].a, factors.a)
        np.testing.assert_array_equal(again.factors[path].b, factors.b)
        assert again.factors[path].scale == 0.5
    empty = Delta({}, {}, {}, ABOUT)
    assert deltas.from_bytes(deltas.to_bytes(empty)) == empty


def test_ten_thousand_corruptions_and_none_is_read():
    data, rng = deltas.to_bytes(a_delta()), np.random.default_rng(0)
    read = 0
    for number in range(10_000):
        damaged = bytearray(data)
        kind, place = number % 4, int(rng.integers(len(data)))
        if kind == 0:  # a bit
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:  # a byte
            damaged[place] = (damaged[place] + int(rng.integers(1, 256))) % 256
        elif kind == 2:  # the rest is missing
            del damaged[place:]
        else:  # something more, or a run of zeros
            damaged[place:place] = bytes(int(rng.integers(1, 9)))
        try:
            deltas.from_bytes(bytes(damaged))
            read += 1
        except InputError as error:
            assert "\n" not in str(error)
    assert read == 0


def test_a_header_that_is_written_in_another_way_is_refused():
    data = deltas.to_bytes(a_delta())
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    other = json.dumps(head, indent=1).encode()
    rewritten = len(other).to_bytes(8, "little") + other + data[8 + size :]
    with pytest.raises(InputError, match="is damaged: its digest does not hold"):
        deltas.from_bytes(rewritten)


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(InputError, match="there is no file .*none.delta"):
        deltas.load(tmp_path / "none.delta")
    (tmp_path / "text.delta").write_text("a text")
    with pytest.raises(
        InputError, match="text.delta is damaged, or is not the file of"
    ):
        deltas.load(tmp_path / "text.delta")
    with pytest.raises(InputError, match="cannot read .*: Is a directory"):
        deltas.load(tmp_path)
    with pytest.raises(InputError, match="cannot write .*none/one.delta: No such file"):
        deltas.save(a_delta(), tmp_path / "none" / "one.delta")
    deltas.save(a_delta(), tmp_path / "one.delta")
    assert {file.name for file in tmp_path.iterdir()} == {"text.delta", "one.delta"}


def test_a_later_format_is_refused_by_its_number(monkeypatch):
    monkeypatch.setattr("subtune_jax.deltas.file.FORMAT", 2)
    data = deltas.to_bytes(a_delta())
    monkeypatch.undo()
    with pytest.raises(
        InputError, match="has format 2, and this version reads 1: install"
    ):
        deltas.from_bytes(data)


def test_the_header_alone_says_what_a_task_is():
    facts = header(deltas.to_bytes(a_delta()))
    assert facts["about"]["metrics"] == {"accuracy": 91.25}
    assert facts["elements"]["params"]["two"]["kernel"] == [40, 15, 20]


def test_what_is_stored_beside_comes_back_as_json():
    delta = a_delta()._replace(about=ABOUT | {"metrics": {1: 0.5, 10: 0.7, 2: (1, 2)}})
    again = deltas.from_bytes(deltas.to_bytes(delta))
    assert again.about["metrics"] == {"1": 0.5, "10": 0.7, "2": [1, 2]}
    with pytest.raises(
        InputError, match="stored beside a delta is not JSON: .*float32"
    ):
        deltas.to_bytes(delta._replace(about=ABOUT | {"metrics": np.float32(1)}))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "complex64", "int4"])
def test_types_that_a_file_has_none_of_are_refused_when_it_is_written(dtype):
    whole = {"params/w": np.zeros(2, jax.numpy.dtype(dtype))}
    with pytest.raises(
        InputError, match=f"'params/w' is {dtype}, which a delta cannot"
    ):
        deltas.to_bytes(a_delta()._replace(whole=whole))


def test_a_file_of_other_facts_is_refused():
    for about in ({}, ABOUT | {"head": {"kind": "mlp", "dtypes": {}}}, {"base": {}}):
        data = deltas.to_bytes(a_delta()._replace(about=about))
        with pytest.raises(InputError, match="is damaged: it cannot be read"):
            deltas.from_bytes(data)
