"""Prints the seconds of tracing and compiling beside those of steps, of calls of `fit`.

    python -m tests.tracing

Each of two networks is trained twice: the second call traces anew, finds the programs of
the first, and compiles nothing.
"""

import time
from collections import Counter

import jax

import subtune_jax as st
from experiments.common.speed import MINILM, random_images, random_texts
from subtune_jax import programs
from subtune_jax.models.bert import BertConfig

COMPILED = "/jax/core/compile/backend_compile_duration"


def seconds_of_fit(network: st.Network, data: st.Dataset, entries, steps: int) -> dict:
    """Returns what one call of `fit` traces and takes; tracing has the digests in it."""
    spent: Counter = Counter()
    shared = programs._shared

    def timed(*args):
        begin = time.perf_counter()
        program = shared(*args)
        spent["tracing"] += time.perf_counter() - begin
        spent["traces"] += 1
        return program

    def compiled(event: str, duration: float, **_) -> None:
        spent["compiling"] += duration * (event == COMPILED)

    programs._shared = timed
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        begin = time.perf_counter()
        phase = st.Phase(st.select(network, {"g": entries}), st.adam(1e-3), steps)
        settings = st.Settings(batch_size=16)
        st.fit(network, phase, data, key=jax.random.key(0), settings=settings)
        whole = time.perf_counter() - begin
    finally:
        programs._shared = shared
        jax.monitoring.unregister_event_duration_listener(compiled)
    return {**spent, "steps": whole - spent["tracing"] - spent["compiling"]}


def main() -> None:
    config = BertConfig(vocab_size=1000, num_heads=12, **MINILM)
    cases = {
        "ResNet-26, all, 10 steps": (*random_images(160, small=False), [".*"], 10),
        "6 x 384, LayerNorms, 20 steps": (
            *random_texts(320, 64, config),
            ["layer_norms"],
            20,
        ),
    }
    print("| run | call | traces | tracing, s | compiling, s | steps, s |")
    print("|---|---|---|---|---|---|")
    for name, case in cases.items():
        for call in ("first", "second"):
            t = seconds_of_fit(*case)
            times = (f"{t.get(k, 0):.2f}" for k in ("tracing", "compiling", "steps"))
            print(f"| {name} | {call} | {t['traces']} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
