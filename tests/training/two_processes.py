"""One of two processes that train one network together: `two_processes NUMBER PORT DIR`."""

import sys

import jax

number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, number)

from subtune_jax.selection.select import select  # noqa: E402
from subtune_jax.training.loop import fit  # noqa: E402
from subtune_jax.training.mesh import placement  # noqa: E402
from subtune_jax.training.optimizers import adam  # noqa: E402
from subtune_jax.training.phases import Phase  # noqa: E402
from subtune_jax.training.settings import Settings  # noqa: E402
from tests import toy  # noqa: E402

network = toy.mlp()
phase = Phase(select(network, {"g": ["head"]}), adam(1e-3), 60)
fitted = fit(
    network,
    phase,
    toy.points(),
    key=jax.random.key(0),
    settings=Settings(batch_size=16, place=placement(2)),
    checkpoint=folder,
    checkpoint_seconds=0.2 + number,  # clocks that differ: one of them decides
)
print("finished", float(abs(fitted.network.params["head"]["kernel"]).sum()))
