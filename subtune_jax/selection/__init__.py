"""Choose: selections, scores of units, single elements, sizes of weights."""

from subtune_jax.selection.journal import Journal, Score, open_journal
from subtune_jax.selection.rate_multipliers import Multipliers, auto_rgn, auto_snr
from subtune_jax.selection.scores import (
    fisher,
    fisher_elements,
    magnitude,
    rank_agreement,
    relative_gradient_norm,
    signal_to_noise,
    top,
    unit_groups,
)
from subtune_jax.selection.search import (
    Scorer,
    Search,
    greedy,
    pairs,
    profile,
    windows,
)
from subtune_jax.selection.select import (
    assert_frozen,
    count_trainable,
    coverage,
    match,
    select,
    unit_patterns,
)
from subtune_jax.selection.weight_sizes import Statistics, statistics, unit_weights

__all__ = [
    "Journal",
    "Multipliers",
    "Score",
    "Scorer",
    "Search",
    "Statistics",
    "assert_frozen",
    "auto_rgn",
    "auto_snr",
    "count_trainable",
    "coverage",
    "fisher",
    "fisher_elements",
    "greedy",
    "magnitude",
    "match",
    "open_journal",
    "pairs",
    "profile",
    "rank_agreement",
    "relative_gradient_norm",
    "select",
    "signal_to_noise",
    "statistics",
    "top",
    "unit_groups",
    "unit_patterns",
    "unit_weights",
    "windows",
]
