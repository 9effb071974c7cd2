"""The environment of processes that tests start for a few steps of small networks."""

import os

# Of two levels for one option the last counts. With level 0 programs compile in two thirds
# of the time; what is compared with numbers of the tests' own process has their level.
QUICK = os.environ | {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0"
}
