"""Small pretrained networks with real data that need no download.

Digits need scikit-learn: pip install 'subtune-jax[experiments]'.
"""

from subtune_jax.demo.digits import digits_network, digits_task
from subtune_jax.demo.docstrings import (
    docstrings_network,
    docstrings_source,
    docstrings_task,
)

__all__ = [
    "digits_network",
    "digits_task",
    "docstrings_network",
    "docstrings_source",
    "docstrings_task",
]
