"""Keep: what a task changed, as one small exact file on a shared base."""

from subtune_jax.deltas.delta import Delta, Elements, base_fingerprint
from subtune_jax.deltas.extract import extract
from subtune_jax.deltas.file import from_bytes, load, save, to_bytes
from subtune_jax.deltas.merge import Merged, merge, restore
from subtune_jax.deltas.open import open_base, open_task
from subtune_jax.deltas.store import Store
from subtune_jax.deltas.swap import Overwritten, apply, undo

__all__ = [
    "Delta",
    "Elements",
    "Merged",
    "Overwritten",
    "Store",
    "apply",
    "base_fingerprint",
    "extract",
    "from_bytes",
    "load",
    "merge",
    "open_base",
    "open_task",
    "restore",
    "save",
    "to_bytes",
    "undo",
]
