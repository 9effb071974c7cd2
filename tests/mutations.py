"""Does a test notice? One line is changed at a time, and the tests of its part are run.

python -m tests.mutations [NAME ...]

Each change stands for a class of faults that the tests once did not see. Works in a copy
of the repository, and prints a table: the test that notices, or `SURVIVES`.

Two survive because they change nothing. `net.tuned_any`: a stage of which only some norms
train is an error a few lines before. `net.tuned_all_modes_frozen_too`: only the modes
`stored` and `batch` reach that line, and both forms treat them alike.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from subtune_jax.errors import InputError, unknown

HOME = Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """In `file`, `old` becomes `new`, which one of `tests` should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "gates.every_element_counts",
        "subtune_jax/tuning/multiplier.py",
        "expected_nonzero(live, gate_of(fixed), moved=True)",
        "expected_nonzero(live, gate_of(fixed))",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "gates.no_newton",
        "subtune_jax/tuning/multiplier.py",
        "jnp.clip(odds, -cut, cut) / jnp.maximum(-slope, 1e-6)",
        "jnp.clip(odds, -cut, cut)",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "gates.no_reach",
        "subtune_jax/tuning/multiplier.py",
        "step = jnp.clip(step, -REACH, REACH)",
        "step = jnp.asarray(step)",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "gates.no_stop_below",
        "subtune_jax/tuning/multiplier.py",
        "jnp.minimum(lowest, 0)",
        "-jnp.inf",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "gates.moves_before_w",
        "subtune_jax/tuning/multiplier.py",
        "jnp.where(moved, _bounded(step, own), 0)",
        "_bounded(step, own)",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "gates.task_moves_multiplier",
        "subtune_jax/tuning/gates.py",
        "own, groups = log_alphas(values | held)",
        "own, groups = log_alphas(values)",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "gates.slow_in_long_runs",
        "subtune_jax/recipes/diff_pruning.py",
        "max(CUT, 2 * distance / (rate * steps))",
        "2 * distance / (rate * steps)",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "step.no_penalty",
        "subtune_jax/training/step.py",
        "return loss + program.penalty(trainable, state.fixed, frozen), (loss, stats)",
        "return loss, (loss, stats)",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "step.weighted_mean_by_len",
        "subtune_jax/losses.py",
        "jnp.sum(counted * weight) / jnp.sum(weight)",
        "jnp.sum(counted * weight) / len(values)",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "state.advance_forgets_resting_values",
        "subtune_jax/training/state.py",
        "state.resting.get(own, Parts({}, {}))",
        "Parts({}, {})",
        "tests/training/test_take_over.py",
    ),
    Mutation(
        "loop.multipliers_from_base",
        "subtune_jax/training/loop.py",
        "    network = live_network(plan, running, state)\n    factors =",
        "    network = plan.network\n    factors =",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "loop.epoch_loss_is_last",
        "subtune_jax/training/loop.py",
        "loss=float(losses.mean())",
        "loss=float(losses[-1])",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "feat.budget_ignored_for_texts",
        "subtune_jax/training/prefix_cache.py",
        "count = len(data.y) if sizes is None else "
        "-(-int(sizes.sum()) // int(sizes.max()))",
        "count = len(data.y) if sizes is None else 1",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "id.data_not_in_recipe",
        "subtune_jax/training/identity.py",
        '"data": tree.fingerprint(seen(plan.data)),',
        '"data": "",',
        "tests/training/test_identity.py",
    ),
    Mutation(
        "id.labels_not_in_recipe",
        "subtune_jax/training/identity.py",
        "[sorted(tree.flatten(phase.labels).items()) for phase in phases]",
        "[]",
        "tests/training/test_identity.py",
    ),
    Mutation(
        "id.constants_not_in_digest",
        "subtune_jax/canonical.py",
        'write("holds", *map(array, getattr(whole, "consts", ())))',
        'write("holds")',
        "tests/training/test_identity.py",
    ),
    Mutation(
        "id.multipliers_not_in_recipe",
        "subtune_jax/training/identity.py",
        "described([phase.multipliers for phase in phases])",
        '""',
        "tests/training/test_identity.py",
    ),
    Mutation(
        "ckpt.digest_unchecked",
        "subtune_jax/training/checkpoints.py",
        'if facts.get("digest") != tree.fingerprint(arrays):',
        "if False:",
        "tests/training/test_checkpoints.py::test_arrays_that_are_not_those_that_were_saved_are_damage",
    ),
    Mutation(
        "net.tuned_any",
        "subtune_jax/labels.py",
        "if found == {True}",
        "if True in found or not found",
        "tests/test_network.py tests/training/test_phases.py",
    ),
    Mutation(
        "auto.equal_scores_zero",
        "subtune_jax/selection/rate_multipliers.py",
        "return {name: 1.0 for name in score}",
        "return {name: 0.0 for name in score}",
        "tests/selection/test_rate_multipliers.py",
    ),
    Mutation(
        "auto.batches_default",
        "subtune_jax/selection/rate_multipliers.py",
        '    normalization: str = "minmax",\n    batches: int = 5,',
        '    normalization: str = "minmax",\n    batches: int = 1,',
        "tests/selection/test_rate_multipliers.py",
    ),
    Mutation(
        "net.tuned_all_modes_frozen_too",
        "subtune_jax/labels.py",
        '    if norm != "tuned":\n        return every if norm == "batch" else frozenset()',
        '    if norm != "tuned":\n        return every if norm != "stored" else frozenset()',
        "tests/test_network.py tests/training/test_phases.py",
    ),
    Mutation(
        "elem.random_ignores_seed_in_each",
        "subtune_jax/selection/elements.py",
        "{path: rng.random(v.size) for path, v in values.items()}",
        "{path: np.random.default_rng(seed).random(v.size) for path, v in values.items()}",
        "tests/selection/test_elements.py",
    ),
    Mutation(
        "auto.snr_normalizes_over_none",
        "subtune_jax/selection/rate_multipliers.py",
        'normalization: str = "minmax",',
        'normalization: str = "max",',
        "tests/selection/test_rate_multipliers.py",
    ),
    Mutation(
        "sample.same_classes_get_more",
        "subtune_jax/data/splits.py",
        "lucky = set(rng.permutation(list(left))[:extra].tolist())",
        "lucky = set(list(left)[:extra])",
        "tests/data/test_data.py",
    ),
    Mutation(
        "shift.blur_double",
        "subtune_jax/data/shifts.py",
        "(0, 1, 1, 0)",
        "(0, 3, 3, 0)",
        "tests/data/test_data.py",
    ),
    Mutation(
        "shift.contrast_mean_of_all",
        "subtune_jax/data/shifts.py",
        "data.x.mean(axis=(1, 2), keepdims=True)",
        "data.x.mean()",
        "tests/data/test_data.py",
    ),
    Mutation(
        "batch.augment_same_every_batch",
        "subtune_jax/data/batches.py",
        "rng = np.random.default_rng([*seed, number, step + 1])",
        "rng = np.random.default_rng([*seed, number, 1])",
        "tests/data/test_data.py",
    ),
    Mutation(
        "corr.severity3_constant",
        "subtune_jax/data/corruptions/table.py",
        "(0.04, 0.06, 0.08, 0.09, 0.10)",
        "(0.04, 0.06, 0.20, 0.09, 0.10)",
        "tests/data/test_corruptions.py",
    ),
    Mutation(
        "ragged.no_pools",
        "subtune_jax/data/buckets.py",
        "32 * size",
        "2**40 * size",
        "tests/data/test_text.py",
    ),
    Mutation(
        "text.pair_fields_swapped",
        "subtune_jax/data/text.py",
        "for text in (row[field] for field in fields)",
        "for text in (row[field] for field in fields[::-1])",
        "tests/data/test_text.py",
    ),
    Mutation(
        "corr.grey_brightness",
        "subtune_jax/data/corruptions/digital.py",
        "        return x + c\n",
        "        return x + 5 * c\n",
        "tests/data/test_corruptions.py",
    ),
    Mutation(
        "images.flip_rarely",
        "subtune_jax/data/crops.py",
        "flips = np.less(rng.random(n), 0.5)",
        "flips = np.less(rng.random(n), 0.1)",
        "tests/data/test_crops.py tests/data/test_folders.py",
    ),
    Mutation(
        "corr.water_color",
        "subtune_jax/data/corruptions/weather.py",
        "np.array([175, 238, 238]) / 255",
        "np.array([255, 0, 0]) / 255",
        "tests/data/test_corruptions.py",
    ),
    Mutation(
        "augmix.no_mixing",
        "subtune_jax/data/augmix.py",
        "return np.round(m * x + (1 - m) * mix).astype(np.uint8)",
        "return x",
        "tests/data/test_augmix.py",
    ),
    Mutation(
        "prepared.newest_by_name",
        "subtune_jax/data/tfds.py",
        'key=lambda p: [int(n) for n in p.name.split(".")]',
        "key=lambda p: p.name",
        "tests/data/test_folders.py",
    ),
    Mutation(
        "gelu.quick_constant",
        "subtune_jax/models/transformer.py",
        "nnx.sigmoid(1.702 * x)",
        "nnx.sigmoid(1.2 * x)",
        "tests/models/test_reference.py",
    ),
    Mutation(
        "gelu.new_is_exact",
        "subtune_jax/models/transformer.py",
        '"gelu_new": tanh_gelu',
        '"gelu_new": exact_gelu',
        "tests/models/test_reference.py",
    ),
    Mutation(
        "bert.no_dropout2",
        "subtune_jax/models/bert.py",
        "self.dropout2(by_row(self.output, inner))",
        "by_row(self.output, inner)",
        "tests/models/test_bert.py",
    ),
    Mutation(
        "bert.no_pool_dropout",
        "subtune_jax/models/bert.py",
        "pooled = self.dropout(self.pooled(x))",
        "pooled = self.pooled(x)",
        "tests/models/test_bert.py",
    ),
    Mutation(
        "vit.no_skip",
        "subtune_jax/models/vit.py",
        "return x + self.dropout2(by_row(self.output, inner))",
        "return self.dropout2(by_row(self.output, inner))",
        "tests/models/test_reference.py",
    ),
    Mutation(
        "vit.no_norm_before_ff",
        "subtune_jax/models/vit.py",
        "inner = self.activation(by_row(self.intermediate, self.norm(x)))",
        "inner = self.activation(by_row(self.intermediate, x))",
        "tests/models/test_reference.py",
    ),
    Mutation(
        "metric.f1_macro",
        "subtune_jax/metrics.py",
        "score(labels, called, zero_division=0)",
        'score(labels, called, zero_division=0, average="macro")',
        "tests/test_metrics.py tests/data/test_text.py",
    ),
    Mutation(
        "resnet.batch_momentum",
        "subtune_jax/models/resnet.py",
        "nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)",
        "nnx.BatchNorm(width, momentum=0.5, epsilon=1e-5, rngs=rngs)",
        "tests/models/test_reference.py",
    ),
    Mutation(
        "trials.test_on_validation",
        "subtune_jax/data/task.py",
        'task.metric: (task.test, task.metrics["test"])',
        'task.metric: (Sealed(task.validation), task.metrics["test"])',
        "tests/training/test_tune.py",
    ),
    Mutation(
        "texts.validation_overlaps_test",
        "experiments/common/texts.py",
        'train = glue(name, "train", home, read, max_length)',
        'train = glue(name, "validation", home, read, max_length)',
        "tests/experiments/test_transformer_experiments.py::test_training_and_validation_sentences_are_those_of_the_training_split",
    ),
    Mutation(
        "modules.warmup_dropped",
        "experiments/common/modules.py",
        "warmup = int(recipe.warmup_ratio * steps)",
        "warmup = 0",
        "tests/experiments/test_transformer_experiments.py::test_the_rules_are_linear_with_warm_up_and_a_clip_of_one",
    ),
    Mutation(
        "x.memo_copies_ignored",
        "subtune_jax/training/test_time.py",
        "yield augmix_copies(image, copies, rng), image[None]",
        "yield augmix_copies(image, 2, rng), image[None]",
        "tests/training/test_test_time.py",
    ),
    Mutation(
        "x.episodic_flag_lost",
        "subtune_jax/training/test_time.py",
        "        episodic=episodic,\n",
        "        episodic=False,\n",
        "tests/training/test_test_time.py",
    ),
    Mutation(
        "x.select_on_test",
        "subtune_jax/training/tune.py",
        'evaluate(candidate, task.validation, task.metrics["validation"])',
        'evaluate(candidate, task.test._data, task.metrics["test"])',
        "tests/training/test_tune.py",
    ),
    Mutation(
        "x.modules_no_clip",
        "experiments/common/modules.py",
        "        clip_norm=1.0,",
        "        clip_norm=100.0,",
        "tests/experiments/test_transformer_experiments.py::test_the_rules_are_linear_with_warm_up_and_a_clip_of_one",
    ),
    Mutation(
        "x.theory_noise_first_leaf_key",
        "experiments/surgical_theory.py",
        "jax.random.fold_in(key, places[path])",
        "key",
        "tests/experiments/test_surgical_experiments.py::test_the_noise_of_a_block_is_of_its_own_in_every_leaf",
    ),
    Mutation(
        "adapt.one_step",
        "subtune_jax/training/test_time.py",
        "for _ in range(phase.steps):",
        "for _ in range(1):",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "opt.adam_eps",
        "subtune_jax/training/optimizers.py",
        "optax.scale_by_adam(eps=eps)",
        "optax.scale_by_adam(b2=0.99, eps=eps)",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "images.nearest",
        "subtune_jax/data/crops.py",
        "Image.Resampling.BILINEAR",
        "Image.Resampling.NEAREST",
        "tests/data/test_crops.py tests/data/test_folders.py",
    ),
    Mutation(
        "x.norm_flag_lost",
        "subtune_jax/training/tune.py",
        "network, phases, task.train, key=key, settings=settings, traces=traces",
        "network, phases, task.train, key=key, "
        'settings=settings._replace(norm="stored"), traces=traces',
        "tests/training/test_tune.py",
    ),
    Mutation(
        "plan.no_drop_under_accumulation",
        "subtune_jax/training/plan.py",
        "settings.accumulate > 1",
        "False",
        "tests/training/test_by_hand.py",
    ),
    Mutation(
        "feat.short_phase_cached",
        "subtune_jax/training/loop.py",
        "if plan.settings.augment is not None or phase.steps <= plan.per_epoch:",
        "if plan.settings.augment is not None:",
        "tests/training/test_by_hand.py",
    ),
]


def noticed(mutation: Mutation, home: Path) -> str:
    """Returns the test that failed, or `SURVIVES`; the file is put back."""
    file = home / mutation.file
    text = file.read_text()
    if text.count(mutation.old) < 1:
        return "NOT THERE"
    file.write_text(text.replace(mutation.old, mutation.new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "--no-header"]
    done = subprocess.run(
        [*command, *mutation.tests.split()], cwd=home, capture_output=True, text=True
    )
    file.write_text(text)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode == 0:
        return "SURVIVES"
    return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else "an error"


def main(names: list[str]) -> int:
    """Prints the table; returns how many survive."""
    data = os.environ.get("SUBTUNE_TEST_DATA")
    if data:
        os.environ["SUBTUNE_TEST_DATA"] = str(Path(data).resolve())
    known = [mutation.name for mutation in MUTATIONS]
    for name in names:
        if name not in known:
            raise unknown("mutation", name, known)
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "copy"
        ignore = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
        shutil.copytree(HOME, home, ignore=ignore)
        print("| change | noticed by |\n|---|---|")
        found = []
        for mutation in chosen:
            found.append(noticed(mutation, home))
            print(f"| {mutation.name} | {found[-1]} |", flush=True)
    lost = sum(result in ("SURVIVES", "NOT THERE", "an error") for result in found)
    print(f"\n{len(found) - lost} of {len(found)} are noticed")
    return lost


if __name__ == "__main__":
    try:
        sys.exit(min(main(sys.argv[1:]), 1))
    except InputError as error:
        sys.exit(f"error: {error}")
