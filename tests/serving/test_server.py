"""A store of tasks answers, and what is wrong with one harms no other."""

import gc
import os
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import subtune_jax as st
from subtune_jax.deltas.extract import extract
from subtune_jax.deltas.file import to_bytes
from subtune_jax.deltas.store import Store
from subtune_jax.errors import InputError
from subtune_jax.network import Pixels, Source
from subtune_jax.serving.mixed import Mixed
from subtune_jax.serving.server import serve
from subtune_jax.training.predict import predict
from tests import toy
from tests.serving import tasks


def small_tasks(network, count):
    """Tasks that changed biases and the head, with class names."""
    deltas = {}
    for i in range(count):
        tuned = tasks.changed(network, ["one/bias", "two/bias"], 1 + i / 10)
        tuned = tasks.with_head(tuned, 3, i)
        deltas[f"task{i}"] = extract(network, tuned, classes=["a", "b", f"c{i}"])
    return deltas


def stored(folder, deltas):
    store = Store(folder)
    for name, delta in deltas.items():
        store.add(name, to_bytes(delta))
    return store


def test_answers_have_the_names_and_scores_of_their_tasks(tmp_path):
    network, data = tasks.network_of("mlp")
    deltas = small_tasks(network, 3)
    server = serve(network, stored(tmp_path, deltas))
    names = ["task2", "task0", "task2", "task1"]
    expected = tasks.separate(network, deltas, data.x[:4])
    for i, one in enumerate(server(data.x[:4], names)):
        y = expected[names[i]][i]
        np.testing.assert_allclose(one.outputs, y, rtol=1e-5, atol=1e-5)
        assert list(one.scores) == ["a", "b", f"c{names[i][-1]}"]
        assert one.label == list(one.scores)[int(y.argmax())] and not one.error
        share = np.exp(y.max()) / np.exp(y).sum()
        assert one.scores[one.label] == pytest.approx(share, rel=1e-5)
    assert [one.task for one in server(data.x[:2], "task1")] == ["task1", "task1"]


def test_rows_that_cannot_be_answered_say_so_and_the_others_are_answered(tmp_path):
    network, data = tasks.network_of("mlp")
    deltas = small_tasks(network, 2)
    store = stored(tmp_path, deltas)
    other = tasks.changed(network, ["one"])
    store.add("foreign", to_bytes(small_tasks(other, 1)["task0"]))
    store.file("broken").write_bytes(b"no task")
    server = serve(network, store)
    names = ["task0", "tusk1", "foreign", "broken", "../task0", "task1"]
    answers = server(data.x[:6], names)
    expected = tasks.separate(network, deltas, data.x[:6])
    for i in (0, 5):
        np.testing.assert_allclose(answers[i].outputs, expected[names[i]][i], atol=1e-5)
    errors = [one.error for one in answers]
    assert errors[0] == errors[5] == ""
    assert errors[1].startswith("unknown task 'tusk1'")
    assert errors[1].endswith("did you mean 'task1'?")
    assert errors[2].startswith("the delta belongs to another base")
    assert errors[3].endswith("is damaged, or is not the file of a delta")
    assert errors[4].startswith("'../task0' cannot name a task")
    with pytest.raises(
        InputError, match="^there are no examples: the inputs are empty"
    ):
        server(data.x[:0], [])
    with pytest.raises(
        InputError, match="^there are 2 inputs and 3 names of tasks: give"
    ):
        server(data.x[:2], ["task0"] * 3)
    with pytest.raises(
        InputError, match="^tasks must be a name, or a list of names, got N"
    ):
        server(data.x[:2], None)
    with pytest.raises(
        InputError, match="^inputs must be a list, got one text or file"
    ):
        server("a text", "task0")
    with pytest.raises(InputError, match="^store must be a Store or a folder, got int"):
        serve(network, 3)
    with pytest.raises(InputError, match="^names of tasks must be texts, got list"):
        server(data.x[:2], [["task0"], "task0"])
    with pytest.raises(InputError, match="^max_length must be a positive whole number"):
        serve(network, store, max_length=0)
    with pytest.raises(InputError, match="^tokenizer must be one of the package"):
        serve(network, store, tokenizer="x")
    with pytest.raises(InputError, match="^stage 'one' cannot take its input"):
        server(np.zeros((1, 9), np.float32), "task0")


def test_a_store_that_another_process_changes_is_read_again(tmp_path):
    network, data = tasks.network_of("mlp")
    deltas = small_tasks(network, 3)
    store = stored(tmp_path, {n: deltas[n] for n in ("task0", "task1")})
    server, x = serve(network, store), data.x[:2]
    expected = tasks.separate(network, deltas, x)
    server(x, ["task0", "task1"])
    store.add("task0", to_bytes(deltas["task2"]), replace=True)
    store.remove("task1")
    new, gone = server(x, ["task0", "task1"])
    np.testing.assert_allclose(new.outputs, expected["task2"][0], atol=1e-5)
    assert gone.error.startswith("unknown task 'task1'")
    store.add("task1", to_bytes(deltas["task1"]))
    back = server(x, ["task1", "task1"])
    np.testing.assert_allclose(back[0].outputs, expected["task1"][0], atol=1e-5)


class Counted(Store):
    """A store that counts what is read."""

    def __init__(self, folder):
        super().__init__(folder)
        self.read = Counter()

    def get(self, name):
        self.read[name] += 1
        return super().get(name)


def test_tasks_in_use_stay_within_the_memory_and_only_those_are_read(tmp_path):
    network, data = tasks.network_of("mlp")
    kinds = [tasks.deltas("mlp", network)[n] for n in ("vectors", "lora", "pair")]
    store = Counted(tmp_path)
    for i in range(60):
        store.add(f"task{i}", to_bytes(kinds[i % 3]))
    every = Mixed(network)
    for i in range(60):
        every.put(f"task{i}", kinds[i % 3])
    memory = every.nbytes() // 6
    server = serve(network, store, memory=memory)
    random = np.random.default_rng(0)
    for _ in range(30):
        numbers = random.integers(0, 60, 4).tolist()
        answers = server(data.x[:4], [f"task{i}" for i in numbers])
        assert not any(one.error for one in answers)
        assert server.mixed.nbytes() <= memory
    few = dict(store.read)
    server(data.x[:2], ["task0", "task0"])
    before = Counter(store.read)
    server(data.x[:2], ["task0", "task0"])
    assert store.read == before, "a task in memory is read again"
    assert set(few) <= {f"task{i}" for i in range(60)}
    tight = serve(network, store, memory=100)
    (one,) = tight(data.x[:1], "task0")
    assert one.error.startswith("the task 'task0' takes ") and "memory=" in one.error


def calls(function) -> int:
    """Returns how many functions of Python one call runs."""
    count = 0

    def tell(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # JAX has a function that a collection calls, whenever one comes
    sys.setprofile(tell)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def test_the_thousandth_task_costs_as_much_as_the_tenth(tmp_path):
    network, _ = tasks.network_of("mlp")
    deltas = list(small_tasks(network, 4).values())
    mixed, store, costs = Mixed(network), Store(tmp_path), {}
    data = to_bytes(deltas[0])
    for i in range(1, 1001):

        def one(i=i):
            mixed.put(f"task{i}", deltas[i % 4])
            store.add(f"task{i}", data)

        if i in (10, 1000):
            costs[i] = calls(one)
        else:
            one()
    assert mixed.bank.rows.slots == 1024 and len(mixed.bank.tasks) == 1000
    assert costs[1000] == costs[10]


def test_a_new_task_costs_the_server_as_much_beside_a_thousand(tmp_path):
    network, data = tasks.network_of("mlp")
    some = to_bytes(small_tasks(network, 1)["task0"])
    store, costs = Store(tmp_path), {}
    for i in range(1, 1002):
        store.add(f"task{i}", some)
    server = serve(network, store)
    for i in range(1, 1002):
        # The 11th and the 1,001st: no slots double there.
        cost = (
            calls(lambda i=i: server(data.x[:1], f"task{i}")) if i in (11, 1001) else 0
        )
        if not cost:
            server(data.x[:1], f"task{i}")
        costs[i] = cost
    assert costs[1001] <= 1.02 * costs[11]


def test_a_file_that_comes_late_is_one_sentence_or_an_answer(tmp_path):
    network, data = tasks.network_of("mlp")
    some = to_bytes(small_tasks(network, 1)["task0"])

    class Late(Store):
        def get(self, name):
            if not self.file(name).exists():
                self.add(name, some)
            return super().get(name)

    (one,) = serve(network, Late(tmp_path))(data.x[:1], "late")
    assert not one.error and one.label


def test_texts_and_images_are_read_as_the_base_reads_them(tmp_path):
    network, _ = toy.transformer("vit")
    reads = Pixels(1, (8, 8))
    network = network._replace(source=Source(reads))
    delta = extract(network, network, classes=["x", "y", "z"])
    server = serve(network, stored(tmp_path / "store", {"task": delta}))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    file = tmp_path / "image.png"
    Image.fromarray(pixels).save(file)
    (tmp_path / "note.txt").write_text("no image")
    large = np.random.default_rng(1).integers(0, 256, (20, 12, 1), np.uint8)
    inputs = [file, tmp_path / "note.txt", pixels[..., None], large, 3]
    answers = server(inputs, "task")
    expected = predict(network, pixels[None, ..., None])[0]
    np.testing.assert_allclose(answers[0].outputs, expected, atol=1e-5)
    np.testing.assert_allclose(answers[2].outputs, expected, atol=1e-5)
    assert answers[1].error.endswith(
        "cannot identify image file " + repr(str(inputs[1]))
    )
    assert answers[3].label in "xyz"
    assert answers[4].error == "expected an image [height, width, 1], got int"
    (only,) = server([tmp_path / "none.png"], "task")
    assert "is not a readable image" in only.error
    assert "embedded null byte" in server(["a\0b.png", file], "task")[0].error
    with pytest.raises(InputError, match="^there are no inputs: the list is empty"):
        server([], "task")


def test_sentences_are_answered_with_a_tokenizer(tmp_path):
    network, source = st.demo.docstrings.docstrings_source()
    sentences, labels = st.demo.docstrings.sentences(st.demo.docstrings.SOURCE)
    names = list(st.demo.docstrings.SOURCE)
    store = stored(tmp_path, {"source": extract(network, network, classes=names)})
    server = serve(network, store, tokenizer=st.demo.docstrings.words(), max_length=32)
    answers = server(list(sentences[:16]), "source")
    outputs = predict(network, source.only(np.arange(16)).x)
    assert [a.label for a in answers] == [names[i] for i in outputs.argmax(axis=1)]
    one, pair, odd = server(
        ["Return a list.", ("two", "texts"), ("a", "b", "c")], "source"
    )
    assert not one.error and not pair.error
    assert odd.error == "expected a text or a pair of texts: the input has 3 texts"
    (alone,) = server(["Return a list."], "source")
    np.testing.assert_allclose(one.outputs, alone.outputs, rtol=1e-5, atol=1e-5)
    assert server([3], "source")[0].error.endswith("the input is no text: 3")
    with pytest.raises(
        InputError, match="^max_length is 33: the base takes 32 tokens$"
    ):
        serve(network, store, max_length=33)
    with pytest.raises(InputError, match="give tokenizer=, that of its texts"):
        serve(network, store)(["a"], "source")
    assert os.path.exists(store.file("source"))
