"""What tasks in memory hold and answer, worked out by hand."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import subtune_jax as st
from subtune_jax.deltas import Store, to_bytes
from subtune_jax.models.bert import BertConfig, bert
from subtune_jax.network import Pixels, Source, Tokens
from subtune_jax.serving.factored import NotFactored, factored
from subtune_jax.serving.parts import body_of, changes, widened_head
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


def test_scores_of_logits_past_the_range_of_exp_are_finite():
    scores = answer("task", (), np.array([2000.0, 2000.0, -2000.0], np.float32)).scores
    assert [*scores.values()] == [0.5, 0.5, 0.0]


def test_a_batch_of_more_tasks_than_fit_is_answered_in_turns(tmp_path):
    """Two of three fit: those that a row waits for stay until it is answered."""
    base, data, store = toy.mlp(), toy.points(6), Store(tmp_path)
    deltas = {
        name: st.extract(base, tasks.changed(base, ["two"], 1.5 + i))
        for i, name in enumerate("abc")
    }
    for name, delta in deltas.items():
        store.add(name, to_bytes(delta))
    server = st.serve(base, store)
    server(data.x[:2], ["a", "b"])
    server = st.serve(base, store, memory=server.mixed.nbytes() + 1)
    names = [*"abcabc"]
    answers = server(data.x, names)
    expected = tasks.separate(base, deltas, data.x)
    for i, one in enumerate(answers):
        assert not one.error
        np.testing.assert_allclose(one.outputs, expected[names[i]][i], atol=1e-5)
    assert len(server.versions) == 2


@pytest.mark.parametrize("what", ["size", "file"])
def test_a_task_is_read_again_whatever_the_clock_says(tmp_path, what):
    """A file of the same time of change, but of another size, or put in its place."""
    base, x, store = toy.mlp(), toy.points(1).x, Store(tmp_path)
    one, same_size, longer = (
        st.extract(base, tasks.changed(base, paths, factor))
        for paths, factor in (
            (["two/bias"], 2.0),
            (["two/bias"], 3.0),
            (["one", "two"], 2.0),
        )
    )
    other = longer if what == "size" else same_size
    store.add("task", to_bytes(one))
    file = store.file("task")
    server, before = st.serve(base, store), file.stat()
    server(x, "task")
    if what == "size":
        file.write_bytes(to_bytes(other))  # the same inode
    else:
        store.add("task", to_bytes(other), replace=True)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    expected = st.predict(st.apply(base, other)[0], x)[0]
    np.testing.assert_allclose(server(x, "task")[0].outputs, expected, atol=1e-5)


def test_images_of_the_size_that_most_have_are_read():
    """A base without a size of its own, and the odd one first."""
    network = toy.mlp()._replace(source=Source(reads=Pixels(1, None)))
    small, large = np.zeros((2, 2, 1), np.uint8), np.ones((3, 3, 1), np.uint8)
    x, wrong = read(network, [small, large, large])
    assert x.shape == (3, 3, 3, 1) and [*wrong] == [0]
    assert x[:, 0, 0, 0].tolist() == [0, 1, 1]
    assert wrong[0].startswith("the image is 2 x 2 and others of the batch are 3 x 3")


def test_texts_and_pairs_in_one_batch_are_as_wide_as_the_widest():
    """Texts come first, pairs after them: here the texts are longer, there the pairs."""
    words = tokenizers.BertWordPieceTokenizer(
        {w: i for i, w in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] word".split())}
    )
    network = toy.mlp()._replace(source=Source(reads=Tokens(40, 2, 64)))
    for inputs, lengths in (
        (["word " * 8, ("word", "word")], [10, 5]),
        (["word", ("word word", "word " * 40)], [3, 45]),
    ):
        x, wrong = read(network, inputs, words)
        assert not wrong and x["input_ids"].shape[1] >= max(lengths)
        assert x["attention_mask"].sum(1).tolist() == lengths


def test_a_large_head_runs_by_task():
    """6 x 10,000 numbers and a bias are more than are gathered for each row."""
    base, data = toy.mlp(), toy.points(4)
    deltas = {
        name: st.extract(base, tasks.with_head(base, 10_000, seed))
        for seed, name in enumerate("ab")
    }
    mixed = st.serving.Mixed(base)
    for name, delta in deltas.items():
        mixed.put(name, delta)
    assert not mixed.bank.heads  # no array with a row for each task
    expected = tasks.separate(base, deltas, data.x)
    for i, row in enumerate(mixed(data.x, [*"abba"])):
        np.testing.assert_allclose(row, expected["abba"[i]][i], atol=1e-5)


def test_a_product_with_a_kernel_turned_round_is_no_product_of_its_factors():
    """All sizes are 3, so that A would fit where W's columns are contracted."""
    w, a, b = (np.random.default_rng(i).normal(size=(3, 3)) for i in range(3))
    x = jnp.asarray(np.eye(3)[:2])

    def with_rows(params, x):
        return x @ params["w"]

    def with_columns(params, x):
        return jax.lax.dot_general(x, params["w"], (((1,), (1,)), ((), ())))

    y = factored(with_rows, {"w": (a, b)}, {"w": w}, x)
    np.testing.assert_allclose(y, (w + a @ b)[:2], atol=1e-5)
    with pytest.raises(NotFactored, match="over other axes than its rows"):
        factored(with_columns, {"w": (a, b)}, {"w": w}, x)


def test_a_stage_that_gives_its_kernel_away_has_no_factors():
    w, a, b = np.ones((3, 3)), np.ones((3, 1)), np.ones((1, 3))
    with pytest.raises(NotFactored, match="a kernel is an output"):
        factored(lambda params, x: params["w"], {"w": (a, b)}, {"w": w}, jnp.ones(3))


@pytest.mark.parametrize(("outputs", "columns"), [(1, 8), (7, 8), (8, 8), (9, 16)])
def test_a_head_is_filled_up_to_a_multiple_of_eight(outputs, columns):
    head = {"kernel": jnp.ones((4, outputs)), "bias": jnp.ones(outputs)}
    (params, _), real = widened_head(head, {})
    assert real == outputs and params["kernel"].shape == (4, columns)
    assert params["bias"].tolist() == [1.0] * outputs + [0.0] * (columns - outputs)


def test_a_last_stage_that_is_no_head_of_ours_is_not_of_the_body():
    """Its kernel is large, and would be held a second time as a stage of its own."""
    base = toy.mlp()
    stages = (*base.stages[:2], st.Stage("head", lambda p, s, x, **_: (x @ p["w"], s)))
    params = {**base.params, "head": {"w": jnp.ones((6, 3))}}
    base = base._replace(stages=stages, params=params)
    delta = st.extract(base, tasks.changed(base, ["one/bias", "head"]))
    mixed = st.serving.Mixed(base)
    mixed.put("task", delta)
    assert mixed.bank.tasks["task"].own == {}
    assert [*changes(body_of(base, delta))] == ["one"]
    x = toy.points(2).x
    expected = st.predict(st.apply(base, delta)[0], x)
    np.testing.assert_allclose(mixed(x, ["task"] * 2), expected, atol=1e-5)
