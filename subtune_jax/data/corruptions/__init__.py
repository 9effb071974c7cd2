"""Common image corruptions, by name and severity."""

from subtune_jax.data.corruptions.table import CORRUPTIONS, corrupt

__all__ = ["CORRUPTIONS", "corrupt"]
