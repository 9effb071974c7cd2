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
        "n.codec_ties_high",
        "subtune_jax/deltas/codec.py",
        "return min(bits, key=lambda r: (bits[r], r))",
        "return min(bits, key=lambda r: (bits[r], -r))",
        "tests/deltas/test_codec.py",
    ),
    Mutation(
        "n.codec_near_only",
        "subtune_jax/deltas/codec.py",
        "tried = range(max(near - 2, 0), near + 2)",
        "tried = range(near, near + 1)",
        "tests/deltas",
    ),
    Mutation(
        "n.file_format_unchecked",
        "subtune_jax/deltas/file.py",
        "if version != FORMAT:",
        "if version is None:",
        "tests/deltas",
    ),
    Mutation(
        "n.file_digest_without_shape",
        "subtune_jax/deltas/file.py",
        'digest.update(f"\\n{name} {array.dtype} {list(array.shape)}\\n".encode())',
        'digest.update(f"\\n{name} {array.dtype}\\n".encode())',
        "tests/deltas/test_by_hand.py",
    ),
    Mutation(
        "n.entry_without_type",
        "subtune_jax/deltas/file.py",
        "return entry if dtype == common else [dtype, *entry]",
        "return entry",
        "tests/deltas/test_by_hand.py",
    ),
    Mutation(
        "n.store_lists_hidden",
        "subtune_jax/deltas/store.py",
        "if file.endswith(SUFFIX) and NAME.fullmatch(file)",
        "if file.endswith(SUFFIX)",
        "tests/deltas",
    ),
    Mutation(
        "n.padding_writes_first",
        "subtune_jax/deltas/elements.py",
        "index = np.full((leaf.ndim, size), leaf.shape[0], np.int32)",
        "index = np.zeros((leaf.ndim, size), np.int32)",
        "tests/deltas",
    ),
    Mutation(
        "n.undo_keeps_task_source",
        "subtune_jax/deltas/swap.py",
        "before = network._replace(stages=stages, source=overwritten.source)",
        "before = network._replace(stages=stages)",
        "tests/deltas",
    ),
    Mutation(
        "n.changes_counts_head",
        "subtune_jax/serving/parts.py",
        '            if of_stage(path, delta.about["head"]):\n                continue\n',
        "",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "n.widened_by_ones",
        "subtune_jax/serving/parts.py",
        "return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])",
        "return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)], constant_values=1)",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "n.group_first_row_only",
        "subtune_jax/serving/groups.py",
        "padded = np.array(rows, np.int32)[np.arange(size) % len(rows)]",
        "padded = np.array(rows, np.int32)[np.minimum(np.arange(size), len(rows) - 2)]",
        "tests/serving",
    ),
    Mutation(
        "n.rows_default_zero",
        "subtune_jax/serving/bank.py",
        "return jnp.zeros_like(value) if leaf is None else jnp.asarray(leaf)",
        "return jnp.zeros_like(value)",
        "tests/serving",
    ),
    Mutation(
        "n.drop_keeps_bytes",
        "subtune_jax/serving/bank.py",
        "        self.own_bytes -= self._own_bytes(prepared)\n",
        "",
        "tests/serving",
    ),
    Mutation(
        "n.answer_unnamed_kept",
        "subtune_jax/serving/server.py",
        "named = len(set(classes)) == len(classes) == len(outputs)",
        "named = len(classes) == len(outputs)",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "n.server_never_rereads",
        "subtune_jax/serving/server.py",
        "if name in self.versions and self.versions[name].file == file:",
        "if name in self.versions:",
        "tests/serving",
    ),
    Mutation(
        "n.search_shortlist_lowest",
        "subtune_jax/selection/candidates.py",
        "kept = set(sorted(candidates, key=rank, reverse=True)[:count])",
        "kept = set(sorted(candidates, key=rank)[:count])",
        "tests/selection",
    ),
    Mutation(
        "n.search_paper_allows_equal",
        "subtune_jax/selection/search.py",
        'if stop_rule == "paper" and not gain > epsilon:',
        'if stop_rule == "paper" and not gain >= epsilon:',
        "tests/selection",
    ),
    Mutation(
        "n.journal_cut_line_kept",
        "subtune_jax/selection/journal.py",
        "        opened.truncate(len(whole.encode()))",
        "        opened.truncate(len(text.encode()))",
        "tests/selection",
    ),
    Mutation(
        "n.journal_score_unwritten",
        "subtune_jax/selection/journal.py",
        '                _write(self.file, {"score": self.score})',
        "                pass",
        "tests/selection tests/training/test_when_it_changes.py",
    ),
    Mutation(
        "n.rungs_from_one",
        "subtune_jax/selection/search.py",
        "rungs = [min(first, places)]",
        "rungs = [1]",
        "tests/selection",
    ),
    Mutation(
        "n.lane_key_shared",
        "subtune_jax/training/sweep.py",
        "axis = None if shared else 0",
        "axis = None",
        "tests/training/test_sweep.py tests/training/test_subset_score.py",
    ),
    Mutation(
        "n.lane_epoch_logs_first",
        "subtune_jax/training/sweep.py",
        "Logs(*(values[i, lane] for values in chunk))",
        "Logs(*(values[i, 0] for values in chunk))",
        "tests/training/test_sweep.py",
    ),
    Mutation(
        "n.gates_group_not_multiplied",
        "subtune_jax/tuning/gates.py",
        "return {path: x * zg[path] if path in zg else x for path, x in z.items()}",
        "return {path: x for path, x in z.items()}",
        "tests/tuning",
    ),
    Mutation(
        "n.multiplier_slope_sign",
        "subtune_jax/tuning/multiplier.py",
        "step = jnp.clip(odds, -cut, cut) / jnp.maximum(-slope, 1e-6)",
        "step = jnp.clip(odds, -cut, cut) / jnp.maximum(jnp.abs(slope), 1e-6) * 0.5",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "n.cut_no_floor",
        "subtune_jax/recipes/diff_pruning.py",
        "return min(REACH, max(CUT, 2 * distance / (rate * steps)))",
        "return min(REACH, 2 * distance / (rate * steps))",
        "tests/tuning/test_diff_pruning.py tests/test_recipes.py",
    ),
    Mutation(
        "n.fast_accumulate_lost",
        "subtune_jax/recipes/fast.py",
        "stall * accumulate",
        "stall",
        "tests/test_recipes.py tests/tuning/test_fast.py",
    ),
    Mutation(
        "n.energy_sum_not_mean",
        "subtune_jax/tuning/fast.py",
        "return jnp.square(error @ kernel.T).sum(axis=-1).mean()",
        "return jnp.square(error @ kernel.T).mean(axis=-1).mean()",
        "tests/tuning/test_fast.py",
    ),
    Mutation(
        "n.anchor_free_counts",
        "subtune_jax/tuning/anchor.py",
        "jnp.float32(0 if g in free else scale)",
        "jnp.float32(scale)",
        "tests/tuning/test_anchor.py",
    ),
    Mutation(
        "n.lora_dropout_unscaled",
        "subtune_jax/tuning/lora.py",
        "jax.random.bernoulli(keys[path], kept, (len(a), 1)) / kept",
        "jax.random.bernoulli(keys[path], kept, (len(a), 1))",
        "tests/tuning/test_lora.py tests/models/test_by_hand.py",
    ),
    Mutation(
        "p.lora_same_key",
        "subtune_jax/tuning/lora.py",
        "return _factors(keys[path], leaf, rank, outputs[path])",
        "return _factors(key, leaf, rank, outputs[path])",
        "tests/tuning/test_lora.py",
    ),
    Mutation(
        "p.lora_alpha_whole",
        "subtune_jax/tuning/lora.py",
        'values = {"lora": alpha / rank}',
        'values = {"lora": alpha}',
        "tests/tuning/test_lora.py",
    ),
    Mutation(
        "n.lora_b_not_zero",
        "subtune_jax/tuning/lora.py",
        '"b": jnp.zeros((rank, outputs), kernel.dtype)',
        '"b": jnp.full((rank, outputs), 1e-3, kernel.dtype)',
        "tests/tuning",
    ),
    Mutation(
        "n.table_line_number",
        "subtune_jax/data/tables.py",
        'line = data.count(b"\\n", 0, error.start) + 1',
        'line = data.count(b"\\n", 0, error.start)',
        "tests/data/test_tables.py",
    ),
    Mutation(
        "n.table_codes_are_numbers",
        "subtune_jax/data/tables.py",
        'r"[-+]?(0|[1-9]\\d*)?(\\.\\d*)?([eE][-+]?\\d+)?"',
        'r"[-+]?(\\d*)?(\\.\\d*)?([eE][-+]?\\d+)?"',
        "tests/data/test_tables.py",
    ),
    Mutation(
        "n.folder_hidden_read",
        "subtune_jax/data/folders.py",
        'return not path.name.startswith(".") and path.name not in SYSTEM',
        "return path.name not in SYSTEM",
        "tests/data",
    ),
    Mutation(
        "n.tokenizer_side_ignored",
        "subtune_jax/data/tokenizer_files.py",
        'direction=side or "right")',
        'direction="right")',
        "tests/data/test_tokenizer_files.py",
    ),
    Mutation(
        "n.tokenizer_rstrip_lost",
        "subtune_jax/data/tokenizer_files.py",
        'MATCHING = ("single_word", "lstrip", "rstrip", "normalized")',
        'MATCHING = ("single_word", "lstrip", "normalized")',
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "n.folds_unshuffled",
        "subtune_jax/data/splits.py",
        "order = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)]",
        "order = [np.flatnonzero(y == c) for c in np.unique(y)]",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "n.digest_without_names",
        "subtune_jax/canonical.py",
        "own = [(n, text(v)) for n, v in params if n not in LAYOUT]",
        'own = [(n, text(v)) for n, v in params if n not in [*LAYOUT, "axes"]]',
        "tests/training/test_changes.py tests/training/test_identity.py tests/test_programs.py",
    ),
    Mutation(
        "n.renew_nothing",
        "subtune_jax/programs.py",
        "if not stays and changed & set(key):",
        "if not stays and changed == set(key):",
        "tests/training/test_changes.py tests/test_programs.py",
    ),
    Mutation(
        "n.resume_phase_unchecked",
        "subtune_jax/training/same_run.py",
        "for index, facts in enumerate(begun):",
        "for index, facts in enumerate(begun[-1:]):",
        "tests/training/test_changes.py tests/training/test_identity.py "
        "tests/training/test_checkpoints.py",
    ),
    Mutation(
        "n.ending_keeps_partial",
        "subtune_jax/training/resume.py",
        '            kept, history, ended["last"] = ending',
        '            ended["last"] = ending[2]',
        "tests/training/test_when_it_changes.py tests/training/test_checkpoints.py",
    ),
    Mutation(
        "d.classes_unwritten_if_count_same",
        "subtune_jax/deltas/merge.py",
        "if count == before and names == class_names(config):",
        "if count == before:",
        "tests/deltas/test_by_hand.py::test_as_many_classes_of_other_names_are_written",
    ),
    Mutation(
        "d.products_checked_by_min",
        "subtune_jax/deltas/extract.py",
        "off = np.abs(product - np.asarray(new[path], np.float64)).max()",
        "off = np.abs(product - np.asarray(new[path], np.float64)).min()",
        "tests/deltas/test_by_hand.py::test_a_product_that_is_off_in_one_element_is_refused",
    ),
    Mutation(
        "d.head_option_not_compared",
        "subtune_jax/deltas/swap.py",
        '(stored.keys() & here.keys()) | {"pooling", "head"}',
        '(stored.keys() & here.keys()) | {"pooling"}',
        "tests/deltas/test_by_hand.py::test_a_base_with_another_kind_of_head_means_something_else",
    ),
    Mutation(
        "d.gap_bits_of_whole",
        "subtune_jax/deltas/extract.py",
        "GAP_BITS + np.log2(array.size / count)",
        "GAP_BITS + np.log2(array.size)",
        "tests/deltas/test_by_hand.py::test_four_fifths_of_a_tensor_are_stored_as_elements",
    ),
    Mutation(
        "d.apply_keeps_base_classes",
        "subtune_jax/deltas/swap.py",
        'classes = tuple(delta.about.get("classes", ()))',
        "classes = network.source.classes",
        "tests/deltas/test_by_hand.py::test_a_task_has_its_own_classes_and_undo_gives_back_the_base_s",
    ),
    Mutation(
        "s.own_bytes_without_head",
        "subtune_jax/serving/bank.py",
        "return delta + tree.nbytes((prepared.head, stages))",
        "return delta + tree.nbytes(stages)",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "s.factors_not_counted",
        "subtune_jax/serving/bank.py",
        "for x in jax.tree.leaves(prepared.delta[:3])",
        "for x in jax.tree.leaves(prepared.delta[:2])",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "s.longest_ignores_base",
        "subtune_jax/serving/read.py",
        "longest = min(LONGEST, reads.max_length or LONGEST)",
        "longest = LONGEST",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "s.reused_slot_stale",
        "subtune_jax/serving/rows.py",
        "            value = values.get(name, self.defaults[name])",
        "            if name not in values:\n                continue\n"
        "            value = values[name]",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "s.fifo_not_lru",
        "subtune_jax/serving/server.py",
        "            self.versions[name] = self.versions.pop(name)  # used last\n",
        "",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "t.size_last_dataset",
        "subtune_jax/training/suffix.py",
        "sizes[i] += tree.nbytes(x) * len(data.y)",
        "sizes[i] = tree.nbytes(x) * len(data.y)",
        "tests/training/test_shared_by_hand.py",
    ),
    Mutation(
        "q.gain_over_last_not_best",
        "subtune_jax/selection/search.py",
        "gain = step[1] - best[1]",
        "gain = step[1] - path[-1][1]",
        "tests/selection/test_by_hand.py",
    ),
    Mutation(
        "t.fold_seed_ignored",
        "subtune_jax/training/subset_score.py",
        "parts = balanced_folds(task.train.y, folds, seed)",
        "parts = balanced_folds(task.train.y, folds, 0)",
        "tests/training/test_shared_by_hand.py",
    ),
    Mutation(
        "t.phase_norm_unchecked",
        "subtune_jax/training/subset_runs.py",
        "norm=settings.norm if phase.norm is None else phase.norm,",
        "norm=settings.norm,",
        "tests/training/test_shared_by_hand.py",
    ),
    Mutation(
        "q.race_rounds_up",
        "subtune_jax/selection/candidates.py",
        "max(1, len(candidates) // halving)",
        "-(-len(candidates) // halving)",
        "tests/selection/test_by_hand.py",
    ),
    Mutation(
        "t.flops_first_phase_labels",
        "subtune_jax/training/subset_runs.py",
        "stage_flops(network, batch, phase.labels)",
        "stage_flops(network, batch, phases[0].labels)",
        "tests/training/test_shared_by_hand.py",
    ),
    Mutation(
        "r.lane_seconds_whole",
        "subtune_jax/training/tune.py",
        "seconds = (time.perf_counter() - begin) / len(runs)",
        "seconds = time.perf_counter() - begin",
        "tests/training/test_shared_by_hand.py",
    ),
    Mutation(
        "w.diverged_loses_kept",
        "subtune_jax/training/sweep.py",
        "error.kept = None if before.kept is None else _fit(before, before.kept)",
        "error.kept = None",
        "tests/training/test_shared_by_hand.py",
    ),
    Mutation(
        "g.gates_adam_unclipped",
        "subtune_jax/recipes/diff_pruning.py",
        "adam(0.1, clip_norm=1.0)",
        "adam(0.1)",
        "tests/test_recipes_by_hand.py",
    ),
    Mutation(
        "g.fixed_gates_deterministic",
        "subtune_jax/tuning/diff_pruning.py",
        "every = gates_of(values, gate_of(ended.parts.fixed), key)",
        "every = gates_of(values, gate_of(ended.parts.fixed), None)",
        "tests/test_recipes_by_hand.py",
    ),
    Mutation(
        "g.head_rule_ignored",
        "subtune_jax/recipes/diff_pruning.py",
        '"head": head_rule or rule}',
        '"head": rule}',
        "tests/test_recipes_by_hand.py",
    ),
    Mutation(
        "g.gates_rate_constant",
        "subtune_jax/recipes/diff_pruning.py",
        'normalized_sgd(0.1, schedule="linear")',
        "normalized_sgd(0.1)",
        "tests/test_recipes_by_hand.py",
    ),
    Mutation(
        "g.snr_official_threshold",
        "subtune_jax/recipes/units.py",
        'loss, threshold=0.95, mode="official"',
        'loss, threshold=0.5, mode="official"',
        "tests/test_recipes_by_hand.py",
    ),
    Mutation(
        "e.with_head_keeps_target_source",
        "subtune_jax/evaluation/forgetting.py",
        "        source=source.source,\n",
        "",
        "tests/evaluation/test_by_hand.py",
    ),
    Mutation(
        "e.l2_doubled",
        "subtune_jax/evaluation/probe.py",
        "decay = l2 / 2 * jnp.square",
        "decay = l2 * jnp.square",
        "tests/evaluation/test_by_hand.py",
    ),
    Mutation(
        "e.stats_not_between",
        "subtune_jax/evaluation/landscape.py",
        "return origin._replace(params=params, stats=stats)",
        "return origin._replace(params=params)",
        "tests/evaluation/test_by_hand.py",
    ),
    Mutation(
        "x.longest_answer",
        "subtune_jax/data/squad.py",
        "LONGEST_ANSWER = 30",
        "LONGEST_ANSWER = 300",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "x.expected_classes_sorted",
        "subtune_jax/data/folders.py",
        "        distinct = every",
        "        distinct = tuple(sorted(every))",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "x.given_classes_sorted",
        "subtune_jax/data/tables.py",
        "classes = [str(name) for name in classes]",
        "classes = sorted(str(name) for name in classes)",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "x.squad_answer_any_window",
        "subtune_jax/data/squad.py",
        "if number not in best or score > best[number][0]:",
        "if number not in best or score >= best[number][0]:",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "x.plain_keeps_an",
        "subtune_jax/data/squad.py",
        'r"\\b(a|an|the)\\b"',
        'r"\\b(a|the)\\b"',
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "x.span_takes_next",
        "subtune_jax/data/squad.py",
        "(characters[:, 0] < end)",
        "(characters[:, 0] <= end)",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "m.shard_takes_all",
        "subtune_jax/models/files/folder.py",
        "{n: t for n, t in here.items() if named.get(n, shard) == shard}",
        "here",
        "tests/models/test_by_hand.py",
    ),
    Mutation(
        "m.clip_default_activation",
        "subtune_jax/models/files/vit.py",
        '"hidden_act": "quick_gelu"',
        '"hidden_act": "gelu"',
        "tests/models/test_by_hand.py",
    ),
    Mutation(
        "m.orbax_stats_of_network",
        "subtune_jax/models/to_flax.py",
        'stats={name: values["stats"].get(name, {}) for name in network.stats},',
        "stats=network.stats,",
        "tests/models/test_by_hand.py",
    ),
    Mutation(
        "c.level_within_five",
        "experiments/common/curve_tables.py",
        "end >= max(ends.values()) - 1]",
        "end >= max(ends.values()) - 5]",
        "tests/experiments/test_by_hand.py",
    ),
    Mutation(
        "c.interval_of_ninety",
        "experiments/common/report/intervals.py",
        "[2.5, 97.5])",
        "[5, 95])",
        "tests/experiments/test_by_hand.py",
    ),
    Mutation(
        "c.surgical_seed_ignored",
        "experiments/common/surgical.py",
        "key=jax.random.key(job.seed)",
        "key=jax.random.key(0)",
        "tests/experiments/test_by_hand.py",
    ),
    Mutation(
        "c.subtuning_schedule",
        "experiments/common/subtuning.py",
        'weight_decay=recipe.weight_decay, schedule="cosine"',
        'weight_decay=recipe.weight_decay, schedule="linear"',
        "tests/experiments/test_by_hand.py",
    ),
    Mutation(
        "c.rates_swapped",
        "experiments/common/diffs.py",
        "return list(map(Variant, dense, few))",
        "return list(map(Variant, few, dense))",
        "tests/experiments/test_by_hand.py",
    ),
    Mutation(
        "c.head_rate_is_unit_rate",
        "experiments/common/subtuning.py",
        "rules = {HEAD: rule(recipe.head_learning_rate)}",
        "rules = {HEAD: rule(recipe.learning_rate)}",
        "tests/experiments/test_by_hand.py",
    ),
    Mutation(
        "c.ranking_flops_lost",
        "experiments/common/search.py",
        '"flops": search.flops + flops,',
        '"flops": search.flops,',
        "tests/experiments/test_by_hand.py",
    ),
    Mutation(
        "c.body_rate_ignored",
        "experiments/common/strategies.py",
        "make(rate * strategy.body)",
        "make(rate)",
        "tests/experiments/test_by_hand.py",
    ),
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
        '"data": plan.data.fingerprint(),',
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
        'consts = [text(const) for const in getattr(whole, "consts", ())]',
        "consts = []",
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
        'task.metrics["validation"], task.validation)',
        'task.metrics["validation"], task.test._data)',
        "tests/training/test_shared_by_hand.py",
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
    Mutation(
        "o.body_unchecked_dtype",
        "subtune_jax/deltas/extract.py",
        "path: (tuple(leaf.shape), str(leaf.dtype))",
        'path: (tuple(leaf.shape), "")',
        "tests/deltas/test_by_hand.py",
    ),
    Mutation(
        "o.union_dropped",
        "subtune_jax/deltas/extract.py",
        "places = np.union1d(places, np.asarray(chosen, np.int64))",
        "places = np.sort(np.asarray(chosen, np.int64))",
        "tests/deltas/test_by_hand.py",
    ),
    Mutation(
        "o.names_unchecked_when_base_named",
        "subtune_jax/deltas/extract.py",
        "if classes is not None and own and list(classes) != list(own):",
        "if classes is not None and own and len(classes) != len(own):",
        "tests/deltas/test_by_hand.py",
    ),
    Mutation(
        "o.restore_size_kept",
        "subtune_jax/deltas/merge.py",
        "_write_total_size(new, tensors)\n        (new / CONFIG)",
        "(new / CONFIG)",
        "tests/deltas/test_merge.py",
    ),
    Mutation(
        "o.growth_without_widening",
        "subtune_jax/serving/rows.py",
        "shape = tuple(map(max, old, values[name].shape)) if name in values else old",
        "shape = old",
        "tests/serving/test_mixed.py",
    ),
    Mutation(
        "o.bank_head_by_size",
        "subtune_jax/serving/bank.py",
        "by_row = outputs is not None and tree.count(head) <= HEAD_SIZE",
        "by_row = outputs is not None",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "o.shortlist_order",
        "subtune_jax/selection/candidates.py",
        "return [candidate for candidate in candidates if candidate in kept]\n\n\ndef race",
        "return sorted(kept)\n\n\ndef race",
        "tests/selection/test_by_hand.py",
    ),
    Mutation(
        "o.tables_blank_rows",
        "subtune_jax/data/tables.py",
        "if not line.strip():\n            continue",
        "if not line:\n            continue",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "o.folder_nfd_expected",
        "subtune_jax/data/folders.py",
        'every = tuple(unicodedata.normalize("NFC", name) for name in expected)',
        "every = tuple(expected)",
        "tests/data/test_by_hand.py",
    ),
    Mutation(
        "o.tokenizer_order_of_files",
        "subtune_jax/data/tokenizer_files.py",
        "for number, content, how in sorted(_added(config, folder), key=lambda t: t[0]):",
        "for number, content, how in _added(config, folder):",
        "tests/data/test_tokenizer_files.py",
    ),
    Mutation(
        "o.lanes_resting_shared",
        "subtune_jax/training/sweep.py",
        "if shared and not states.resting:",
        "if shared:",
        "tests/training/test_sweep.py",
    ),
    Mutation(
        "o.match_integers_kept",
        "subtune_jax/selection/select.py",
        "    return inexact\n",
        "    return matched\n",
        "tests/selection/test_select.py",
    ),
    Mutation(
        "o.assert_frozen_by_value",
        "subtune_jax/selection/select.py",
        "and np.asarray(old[name]).tobytes() != np.asarray(new[name]).tobytes()",
        "and (np.asarray(old[name]) != np.asarray(new[name])).any()",
        "tests/selection/test_select.py",
    ),
    Mutation(
        "o.fixed_gates_frozen_too",
        "subtune_jax/tuning/diff_pruning.py",
        "chosen = tree.flatten(selected(ended.params, labels).trainable)",
        "chosen = live",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "o.share_one_refused",
        "subtune_jax/tuning/diff_pruning.py",
        "if not 0 < share <= 1:",
        "if not 0 < share < 1:",
        "tests/tuning/test_diff_pruning.py",
    ),
    Mutation(
        "o.file_dtype_of_first",
        "subtune_jax/deltas/file.py",
        'common = max(dtypes, key=dtypes.count, default="float32")',
        'common = dtypes[0] if dtypes else "float32"',
        "tests/deltas/test_by_hand.py",
    ),
    Mutation(
        "o.file_bool_unheld",
        "subtune_jax/deltas/file.py",
        'for bits in (8, 16, 32, 64)} | {"BOOL": "bool"}',
        "for bits in (8, 16, 32, 64)}",
        "tests/deltas/test_by_hand.py",
    ),
    Mutation(
        "o.factored_contracts_any",
        "subtune_jax/serving/factored.py",
        "rows = tuple(right) == (0,) and len(left) == 1 and not any(batch)",
        "rows = len(left) == 1 and not any(batch)",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "o.factored_output_kept",
        "subtune_jax/serving/factored.py",
        "if any(isinstance(x, Kernel) for x in results):",
        "if False:",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "o.head_always_widened",
        "subtune_jax/serving/parts.py",
        "missing = -outputs % COLUMNS",
        "missing = COLUMNS - outputs % COLUMNS",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "o.parts_stage_of_head",
        "subtune_jax/serving/parts.py",
        "return restricted(delta, lambda path: stage_of(path) != last)",
        "return restricted(delta, lambda path: True)",
        "tests/serving/test_by_hand.py",
    ),
    Mutation(
        "o.score_parents_grow",
        "subtune_jax/training/subset_score.py",
        "if one[0] not in (units[:-1], units[:-2])]:",
        "if False]:",
        "tests/training/test_subset_score.py",
    ),
    Mutation(
        "o.trials_keep_values",
        "subtune_jax/training/tune.py",
        "one if one is best else one._replace(trainable=None, fixed=None)",
        "one",
        "tests/training/test_tune.py",
    ),
    Mutation(
        "o.tune_lanes_progress",
        "subtune_jax/training/tune.py",
        "            for trial in trials:\n                progress(trial)\n",
        "",
        "tests/training/test_tune.py",
    ),
    Mutation(
        "o.text_bucket_missing",
        "subtune_jax/data/text.py",
        "buckets = (*(size for size in BUCKETS if size < max_length), max_length)",
        "buckets = (max_length,)",
        "tests/data/test_tokenizer_files.py",
    ),
    Mutation(
        "o.glue_labels_bound",
        "subtune_jax/data/text.py",
        "if y.min() < 0 or (outputs > 1 and y.max() >= outputs):",
        "if y.min() < 0 or (outputs > 1 and y.max() > outputs):",
        "tests/data/test_by_hand.py",
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
