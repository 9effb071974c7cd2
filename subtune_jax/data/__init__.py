"""Data: sets and their parts, images, texts, shifts and corruptions."""

from subtune_jax.data.augmix import augmix_copies
from subtune_jax.data.batches import (
    Augment,
    Batch,
    Dataset,
    epoch,
    in_order,
    padded,
    steps_per_epoch,
)
from subtune_jax.data.breeds import breeds, subpopulations
from subtune_jax.data.buckets import Ragged, ragged
from subtune_jax.data.classes import match_classes
from subtune_jax.data.corruptions import CORRUPTIONS, corrupt
from subtune_jax.data.crops import crop_and_flip, resized_crop_and_flip
from subtune_jax.data.digits import digits
from subtune_jax.data.folders import Folder, LazyImages, folder
from subtune_jax.data.shifts import SHIFTS, Shift, shift
from subtune_jax.data.splits import (
    balanced_folds,
    balanced_indices,
    shuffled_folds,
    split_balanced,
)
from subtune_jax.data.squad import (
    Question,
    Windows,
    answered,
    exact_match,
    squad,
    windows,
)
from subtune_jax.data.squad import f1 as f1_of_answers
from subtune_jax.data.tables import Table, read_table, table
from subtune_jax.data.task import Sealed, Task, fold_tasks, split_task, test_once
from subtune_jax.data.text import GLUE, GlueTask, encode, glue
from subtune_jax.data.tfds import class_names, images, records, split_sizes
from subtune_jax.data.tokenizer_files import tokenizer
from subtune_jax.data.vtab import vtab_1k, vtab_splits

__all__ = [
    "CORRUPTIONS",
    "GLUE",
    "SHIFTS",
    "Augment",
    "Batch",
    "Dataset",
    "Folder",
    "GlueTask",
    "LazyImages",
    "Question",
    "Ragged",
    "Sealed",
    "Shift",
    "Table",
    "Task",
    "Windows",
    "answered",
    "augmix_copies",
    "balanced_folds",
    "balanced_indices",
    "breeds",
    "class_names",
    "corrupt",
    "crop_and_flip",
    "digits",
    "encode",
    "exact_match",
    "f1_of_answers",
    "epoch",
    "fold_tasks",
    "folder",
    "glue",
    "images",
    "in_order",
    "match_classes",
    "padded",
    "ragged",
    "read_table",
    "records",
    "resized_crop_and_flip",
    "shift",
    "shuffled_folds",
    "split_balanced",
    "split_sizes",
    "squad",
    "split_task",
    "steps_per_epoch",
    "subpopulations",
    "table",
    "test_once",
    "tokenizer",
    "vtab_1k",
    "vtab_splits",
    "windows",
]
