"""Serve: many tasks on one base."""

from subtune_jax.serving.mixed import Mixed
from subtune_jax.serving.trunk import Trunk, add, plan, remove, trunk_flops

__all__ = ["Mixed", "Trunk", "add", "plan", "remove", "trunk_flops"]
