"""Serve: many tasks on one base."""

from subtune_jax.serving.exported import export
from subtune_jax.serving.mixed import Mixed
from subtune_jax.serving.server import Answer, Server, serve
from subtune_jax.serving.trunk import Trunk, add, outputs, plan, remove, trunk_flops

__all__ = [
    "Answer",
    "Mixed",
    "Server",
    "Trunk",
    "add",
    "export",
    "outputs",
    "plan",
    "remove",
    "serve",
    "trunk_flops",
]
