"""What tasks in memory hold and answer, worked out by hand."""

import jax
import numpy as np
import pytest
import tokenizers

import subtune_jax as st
from subtune_jax.deltas import Store, to_bytes
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Source, Tokens
from subtune_jax.serving.parts import changes, widened_head
from subtune_jax.serving.read import read
from subtune_jax.serving.server import answer
from tests import toy
from tests.serving import tasks

HEAD = 4 * (6 * 3 + 3)  # bytes of a head of three classes
FILLED = 4 * (6 * 8 + 8)  # and as it is held: filled up to eight


def test_a_task_s_bytes_are_its_delta_its_head_and_the_stages_it_runs_alone():
    """The toy's stage `two` has 6 x 6 + 6 numbers of 4 bytes."""
    base, two = toy.mlp(), 4 * (6 * 6 + 6)
    mixed = st.serving.Mixed(base)
    mixed.put("large", st.extract(base, tasks.changed(base, ["two"])))
    # In the delta: the stage and the head. Beside it: the head, the stage as it is run,
    # and the head again in its row.
    assert mixed.nbytes() == (two + HEAD) + (FILLED + two) + FILLED
    mixed.drop("large")
    lora = tasks.lora_delta(base, "two/kernel", rank=2)
    mixed.put("low", lora)
    factors = 4 * (6 * 2 + 2 * 6)
    # Factors are in the delta and in the arrays by row.
    assert mixed.nbytes() == (factors + HEAD) + FILLED + factors + FILLED


def test_a_slot_that_is_used_again_has_no_value_of_the_task_before():
    """`b` takes the slot of `a`, and does not change what `a` and `c` did."""
    base, data = toy.mlp(), toy.points(4)

    def changed(*paths):
        return st.extract(base, tasks.changed(base, paths))

    deltas = {
        "a": changed("one/bias"),
        "c": changed("one/bias"),
        "b": changed("two/bias"),
    }
    mixed = st.serving.Mixed(base)
    mixed.put("a", deltas["a"])
    mixed.put("c", deltas["c"])
    slot = mixed.bank.tasks["a"].slot
    mixed.drop("a")
    mixed.put("b", deltas["b"])
    assert mixed.bank.tasks["b"].slot == slot
    for name in ("b", "c"):
        alone, _ = st.apply(base, deltas[name])
        np.testing.assert_allclose(
            mixed(data.x, [name] * 4), st.predict(alone, data.x), atol=1e-5
        )


def test_the_task_used_longest_ago_leaves_first(tmp_path):
    base, x, store = toy.mlp(), toy.points(2).x, Store(tmp_path)
    for i, name in enumerate("abc"):
        store.add(name, to_bytes(st.extract(base, tasks.changed(base, ["two"], 1 + i))))
    server = st.serve(base, store)
    for name in "ab":
        server(x, name)
    server = st.serve(base, store, memory=server.mixed.nbytes() + 1)
    for name in "abac":
        assert not server(x, name)[0].error
    assert list(server.versions) == ["a", "c"]


def test_a_text_is_cut_to_what_the_base_takes():
    """A base of 12 positions, and a text of 20 words: far below the default of 128."""
    words = tokenizers.BertWordPieceTokenizer(
        {w: i for i, w in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] word".split())}
    )
    config = BertConfig(40, 16, 2, 4, 24, 12, num_classes=3)
    network = bert(config, jax.random.key(0))
    assert network.source is not None and network.source.reads.max_length == 12
    x, wrong = read(network, ["word " * 20, "word"], words, None)
    assert not wrong and x["input_ids"].shape == (2, 12)
    assert x["input_ids"][0].tolist() == [2, *[5] * 10, 3]


@pytest.mark.parametrize("longest", [None, 8])
def test_the_longest_text_is_at_most_the_default_or_what_is_asked(longest):
    words = tokenizers.BertWordPieceTokenizer(
        {w: i for i, w in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] word".split())}
    )
    network = toy.mlp()._replace(source=Source(reads=Tokens(40, 2, 512)))
    x, _ = read(network, ["word " * 300], words, longest)
    assert x["attention_mask"].sum() == (longest or 128)


def test_what_a_task_changed_is_told_without_its_head():
    base = toy.mlp()
    tuned = tasks.changed(base, ["two", "head"])
    assert list(changes(st.extract(base, tuned))) == ["two"]


def test_a_head_is_filled_up_by_columns_of_zeros():
    params, stats = toy.mlp().params["head"], {}
    (filled, same), outputs = widened_head(params, stats)
    assert outputs == 3 and same is stats
    np.testing.assert_array_equal(filled["kernel"][:, :3], params["kernel"])
    np.testing.assert_array_equal(filled["kernel"][:, 3:], np.zeros((6, 5)))
    np.testing.assert_array_equal(filled["bias"][3:], np.zeros(5))


def test_names_that_are_not_one_for_each_output_are_left_out():
    logits = np.log([0.5, 0.25, 0.25])
    for classes, label in (
        (("up", "down", "left"), "up"),
        (("up", "up", "left"), "0"),
        (("up", "down"), "0"),
        ((), "0"),
    ):
        found = answer("task", classes, logits)
        assert found.label == label and len(found.scores) == 3
        np.testing.assert_allclose([*found.scores.values()], [0.5, 0.25, 0.25])
