"""Killed at any moment and started again, a run is the run that was not killed."""

import gc
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from subtune_jax import recipes, tree
from subtune_jax.deltas import extract, to_bytes
from subtune_jax.errors import InputError
from subtune_jax.models.from_flax import from_nnx
from subtune_jax.selection.select import select
from subtune_jax.training import checkpoints
from subtune_jax.training.checkpoints import Saved
from subtune_jax.training.loop import fit
from subtune_jax.training.optimizers import adam, adamw
from subtune_jax.training.phases import Phase
from subtune_jax.training.settings import Settings
from subtune_jax.tuning.fixed_mask import mask_indices
from tests import toy
from tests.processes import QUICK

KEY = jax.random.key(3)

# When a load fails half-way, Orbax's event loop may be closed before its last callback:
# an exception that nobody can catch, from a thread of its own, after ours was raised.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# Two phases, batch norm, accumulation, a validation score; saved after every step.
RUN = """
import sys, jax
from pathlib import Path
from subtune_jax.training.predict import evaluate
from tests.training.test_checkpoints import final_state, phases, run
from tests import toy
folder = Path(sys.argv[1])
result = run(toy.small_resnet("batch"), folder, float(sys.argv[2]))
print("RESULT", final_state(folder), result.epoch, result.scores)
"""


# Diff pruning: gates for 40 steps, then a mask for 40; what ends is the stored delta.
GATED = """
import hashlib, sys
from tests.training.test_checkpoints import gated_delta
delta = gated_delta(sys.argv[1], float(sys.argv[2]))
print("RESULT", hashlib.sha256(delta).hexdigest())
"""


def gated_delta(folder, seconds):
    """Returns the bytes of the delta of a run of diff pruning, 5 % of a small network."""
    network, data = toy.mlp(40), toy.points()
    result = fit(
        network,
        recipes.diff_pruning(network, 0.05, adam(1e-2), 80),
        data,
        key=KEY,
        settings=Settings(batch_size=16),
        checkpoint=folder,
        checkpoint_seconds=seconds,
    )
    indices = mask_indices(result.trainable, result.fixed)
    return to_bytes(extract(network, result.network, indices=indices))


def phases(network):
    head, body = (
        select(network, {"h": ["head"]}),
        select(network, {"b": ["block3", "head"]}),
    )
    return [Phase(head, adam(1e-2), 10), Phase(body, adamw(1e-3, clip_norm=1.0), 30)]


def run(network, folder, seconds=0.0):
    from subtune_jax.training.predict import evaluate

    return fit(
        network,
        phases(network),
        toy.images(40),
        key=KEY,
        settings=Settings(batch_size=8, accumulate=2, norm="tuned"),
        validate=lambda net: evaluate(net, toy.images(60, seed=1)),
        checkpoint=folder,
        checkpoint_seconds=seconds,
    )


def final_state(folder):
    """Returns a fingerprint of everything in the last checkpoint: parameters, moments,
    statistics, key, the kept epoch."""
    newest = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    from orbax.checkpoint.experimental import v1 as ocp

    with ocp.training.Checkpointer(folder.absolute()) as saved:
        arrays = {k: np.asarray(v) for k, v in saved.load(newest).items()}
        facts = dict(saved.metadata(newest).custom_metadata)  # metrics among them
    return tree.fingerprint(arrays), sorted(facts.items())


def start_process(folder, compiled, hash_seed=0, script=RUN, seconds=0.0):
    """Starts a run in a process of its own; `compiled`: the folder of its programs."""
    env = QUICK | {"PYTHONPATH": str(Path(__file__).parents[2])}
    env |= {
        "PYTHONHASHSEED": str(hash_seed),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
    }
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def steps_saved(folder):
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return max([int(n) for n in names if n.isdigit()], default=0)


# Three points anywhere; and one in the gates, one at the change, one under the mask.
ANYWHERE = ((1, 14), (15, 24), (25, 38))
IN_EVERY_PHASE = ((1, 39), (40, 41), (42, 78))


@pytest.mark.parametrize(
    ("script", "spans"),
    [(RUN, ANYWHERE), (GATED, IN_EVERY_PHASE)],
    ids=["plain", "gated"],
)
def test_killed_at_three_random_points_it_ends_bit_for_bit_the_same(
    tmp_path, script, spans
):
    programs = tmp_path / "programs"
    # It saves at its end alone: saves must not change a run either.
    whole, _ = start_process(
        tmp_path / "whole", programs, script=script, seconds=1e9
    ).communicate()
    expected = [line for line in whole.splitlines() if line.startswith("RESULT")]
    assert len(expected) == 1
    rng, killed = random.Random(), tmp_path / "killed"
    points = [rng.randrange(*span) for span in spans]
    for point in points:
        # A copy of its own: a process that is killed may leave half an entry there.
        copy = shutil.copytree(programs, tmp_path / f"programs-{point}")
        process = start_process(killed, copy, hash_seed=point, script=script)
        while steps_saved(killed) < point and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)  # inside a step, or inside a save
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out, err = start_process(killed, programs, script=script).communicate()
    found = [line for line in out.splitlines() if line.startswith("RESULT")]
    assert found == expected, f"killed at {points}: {err[-2000:]}"


def test_a_finished_run_is_returned_without_a_step(tmp_path, monkeypatch):
    network = toy.small_resnet("batch")
    first = run(network, tmp_path)
    monkeypatch.setattr("subtune_jax.training.loop.compiled_step", None)
    again = run(network, tmp_path)
    assert (again.epoch, again.scores) == (first.epoch, first.scores)
    for field in ("network", "trainable"):
        one, two = getattr(first, field), getattr(again, field)
        if field == "network":
            one, two = (one.params, one.stats), (two.params, two.stats)
        chex.assert_trees_all_equal(one, two)


def longer(folder, steps, rule):
    network = toy.mlp()
    plan = [
        Phase(select(network, {"g": ["head"]}), rule, 5),
        Phase(select(network, {"g": ["two", "head"]}), rule, steps),
    ]
    return fit(
        network,
        plan,
        toy.points(32),
        key=KEY,
        checkpoint=folder,
        settings=Settings(batch_size=8),
    )


def test_more_steps_on_the_same_run_continue_it(tmp_path):
    rule = adam(1e-2, clip_norm=1.0, warmup=2)
    short = longer(tmp_path / "short", 9, rule)  # ends inside an epoch of 4 steps
    assert [log.step for log in short.epochs] == [4, 8, 12, 14]
    more = longer(tmp_path / "short", 20, rule)
    whole = longer(tmp_path / "whole", 20, rule)
    chex.assert_trees_all_equal(more.network.params, whole.network.params)
    chex.assert_trees_all_equal(more.trainable, whole.trainable)
    # The epoch in which the short run ended counts once, when it is whole.
    assert [log.step for log in more.epochs] == [4, 8, 12, 16, 20, 24, 25]
    assert more.epochs == whole.epochs
    message = "has 25 steps of this run, and 14 are asked for: ask for as many or more"
    with pytest.raises(InputError, match=message):
        longer(tmp_path / "short", 9, rule)


def test_a_run_with_a_key_of_another_kind_goes_on(tmp_path):
    network, key = toy.mlp(), jax.random.key(1, impl="rbg")

    def to(steps, **how):
        phase = Phase(select(network, {"g": ["two", "head"]}), adam(1e-2), steps)
        return fit(network, phase, toy.points(32), key=key, **how).network.params

    to(3, checkpoint=tmp_path)
    chex.assert_trees_all_equal(to(8, checkpoint=tmp_path), to(8))


def test_a_schedule_ends_with_its_steps_and_cannot_be_continued(tmp_path):
    rule = adam(1e-2, schedule="cosine")
    longer(tmp_path, 9, rule)
    message = r"these differ: steps \(of a phase before the last, or under a schedule\)"
    with pytest.raises(InputError, match=message):
        longer(tmp_path, 20, rule)


def test_only_what_trains_is_saved(tmp_path):
    network = toy.small_resnet("batch")
    run(network, str(tmp_path), seconds=1e9)  # at the end only
    found = checkpoints.restore(tmp_path)
    trained = tree.count(network.params["head"]) + tree.count(
        network.params["block3_0"]
    )
    trained += tree.count(network.params["pool"])
    arrays = {n: a for n, a in found.arrays.items() if a.ndim}
    assert not [n for n in arrays if "stem" in n and "stats" not in n]
    sizes = {
        prefix: sum(a.size for n, a in arrays.items() if n.startswith(prefix))
        for prefix in (
            "state/trainable",
            "kept/trainable",
            "kept/params",
            "state/opt_state",
        )
    }
    assert sizes["state/trainable"] == sizes["kept/trainable"] == trained
    assert sizes["kept/params"] == trained
    assert sizes["state/opt_state"] == 3 * trained  # two moments, accumulated gradients


def _identity_of(folder):
    from orbax.checkpoint.experimental import v1 as ocp

    with ocp.training.Checkpointer(folder.absolute()) as saved:
        return dict(saved.metadata(steps_saved(folder)).custom_metadata)


def test_another_base_and_other_settings_are_refused(tmp_path):
    network = toy.small_resnet("batch")
    run(network, tmp_path)
    other = {
        **network.params,
        "stem": jax.tree.map(lambda a: a + 1, network.params["stem"]),
    }
    with pytest.raises(InputError, match="belongs to another base: its fingerprint is"):
        run(network._replace(params=other), tmp_path)
    differ = "these differ: batch_size; validate or mode"
    with pytest.raises(InputError, match=differ):
        fit(network, phases(network), toy.images(40), key=KEY, checkpoint=tmp_path)


IDENTITY = {"base": "b", "recipe": {"data": "d", "head": "h"}}


def saved_twice(folder):
    for step in (1, 2):
        arrays = {"x": np.full(1000, step, np.float32), "scalar": np.array(step)}
        checkpoints.save(folder, Saved(step, arrays, dict(IDENTITY)))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_used(
    tmp_path, capsys, damage
):
    saved_twice(tmp_path)
    files = [p for p in (tmp_path / "2").rglob("*") if p.is_file() and "/d/" in str(p)]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
        if damage == "remove":
            file.unlink()
        else:
            file.write_bytes(
                content[: len(content) // 2] if damage == "truncate" else content
            )
    found = checkpoints.restore(tmp_path)
    assert (found.step, found.arrays["x"][0]) == (1, 1)
    assert [p for p in tmp_path.iterdir() if p.name.startswith("damaged-2-")]
    error = capsys.readouterr().err
    assert error == f"checkpoint {tmp_path}/2 is damaged and is left out\n"
    gc.collect()  # what Orbax left behind is collected here, not in another test


def test_two_checkpoints_are_kept(tmp_path):
    saved_twice(tmp_path)
    arrays = {"x": np.zeros(3)}
    checkpoints.save(tmp_path, Saved(3, arrays, dict(IDENTITY)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_a_machine_that_cannot_read_loses_no_checkpoint(tmp_path, monkeypatch):
    saved_twice(tmp_path)

    def fail(*args):
        raise OSError(24, "Too many open files")

    from orbax.checkpoint.experimental import v1 as ocp

    monkeypatch.setattr(ocp.training.Checkpointer, "load", fail)
    with pytest.raises(InputError, match="cannot read .*Too many open files"):
        checkpoints.restore(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_another_head_or_other_inputs_are_another_run_on_the_same_base(tmp_path):
    network = toy.small_resnet("batch")
    run(network, tmp_path)
    head = jax.tree.map(lambda a: a + 1, network.params["head"])
    with pytest.raises(InputError, match="belongs to a run with other settings"):
        run(network._replace(params={**network.params, "head": head}), tmp_path)


def test_no_folder_is_no_checkpoint(tmp_path):
    assert checkpoints.restore(tmp_path / "none") is None


def test_two_processes_save_by_one_clock(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    module = [sys.executable, "-m", "tests.training.two_processes"]
    runs = [
        subprocess.Popen(
            [*module, number, port, str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-3), 60)
    alone = fit(
        network,
        phase,
        toy.points(),
        key=jax.random.key(0),
        settings=Settings(batch_size=16),
    )
    total = float(np.abs(alone.network.params["head"]["kernel"]).sum())
    for out, _ in said:
        assert float(out.split("finished")[1]) == pytest.approx(total, rel=1e-6)


class LowRank(nnx.Module):
    """A linear layer with an adapter; of rank 0 the adapter's leaves have no elements."""

    def __init__(self, rank, rngs):
        self.base = nnx.Linear(4, 3, rngs=rngs)
        self.a, self.b = (
            nnx.Param(jax.numpy.ones((4, rank))),
            nnx.Param(jax.numpy.zeros((rank, 3))),
        )

    def __call__(self, x):
        return self.base(x) + x @ self.a.get_value() @ self.b.get_value()


def test_leaves_without_elements_are_saved_and_come_back(tmp_path):
    network = from_nnx(LowRank(0, nnx.Rngs(0)))
    phase = Phase(select(network, {"t": ["a", "b", "base"]}), adam(1e-2), 6)
    run = partial(
        fit,
        network,
        phase,
        toy.points(),
        key=KEY,
        validate=lambda net: 1.0,
        settings=Settings(batch_size=16),
    )
    plain = run()
    for _ in range(2):  # the second is read back
        saved = run(checkpoint=tmp_path / "run")
        chex.assert_trees_all_equal(saved.network.params, plain.network.params)
        chex.assert_trees_all_equal_shapes_and_dtypes(saved.trainable, plain.trainable)


def test_what_cannot_be_saved_is_known_before_the_first_step(tmp_path, monkeypatch):
    def full(folder, saved):
        raise InputError(f"cannot write to {folder}: No space left on device")

    monkeypatch.setattr(checkpoints, "save", full)
    monkeypatch.setattr(
        "subtune_jax.training.loop.compiled_step", None
    )  # no step is run
    network = toy.mlp()
    phase = Phase(select(network, {"g": ["head"]}), adam(1e-2), 6)
    with pytest.raises(InputError, match="No space left"):
        fit(network, phase, toy.points(), key=KEY, checkpoint=tmp_path / "run")


UNWRITABLE = """
import sys, jax
from tests import toy
from tests.training.test_checkpoints import run
try:
    run(toy.small_resnet("batch"), sys.argv[1])
except Exception as error:
    print("SAID", type(error).__name__, error)
"""


def test_a_path_that_cannot_be_written_ends_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", UNWRITABLE, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        timeout=60,  # Orbax's threads kept a process alive for 300 seconds
    )
    assert f"SAID InputError cannot write to {tmp_path / 'file'}" in done.stdout


def test_arrays_that_are_not_those_that_were_saved_are_damage(
    tmp_path, monkeypatch, capsys
):
    """A bit that flips on the disk where Orbax reads it without complaint."""
    values = {"state/w": np.arange(3.0)}
    checkpoints.save(tmp_path, Saved(1, values, IDENTITY))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.tree, "fingerprint", lambda tree: "another")
        checkpoints.save(tmp_path, Saved(2, values, IDENTITY))
    assert checkpoints.restore(tmp_path).step == 1
    assert f"checkpoint {tmp_path}/2 is damaged" in capsys.readouterr().err
