"""Results at a glance: one line a claim, made from the rows in results/."""

import json
from pathlib import Path
from statistics import mean

from experiments.common.adaptation import records_of
from experiments.common.module_tables import gap, relative_rows
from experiments.common.report import results, tables

PAGES = "docs/results"
PAPER_MEMO = {"none": 67.8, "all": 69.7, "block1": 75.4}  # Lee et al. 2023, online MEMO


def glance(home: Path) -> str:
    """Returns the table of claims: ours, what stands beside it, and the page."""
    lines = [
        ("question", "ours", "to compare", "page"),
        ("---",) * 4,
        _cifar(home, "gaussian_noise_5", "block1", "noise: is the first block best?"),
        _cifar(home, "label_flip", "last", "flipped labels: is the last layer best?"),
        _digits(home),
        _memo(home),
        _subset(home),
        _calm(home),
        _modules(home),
        _sparse(home),
        _steps(home),
        _storage(home),
        _serving(home),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tests(folder: Path) -> list[results.Row]:
    return [row for row in results.read_all(folder) if row["split"] == "test"]


def _page(name: str) -> str:
    return f"[{name}]({PAGES}/{name}.md)"


def _cifar(home: Path, task: str, block: str, claim: str) -> tuple[str, ...]:
    folder = home / "surgical_cifar10"
    ours = tables.cells(_tests(folder), "task", "method")
    theirs = json.loads((folder / "reference.json").read_text())["cells"][task]
    both = f"{ours[task, block].mean:.1f}, full tuning {ours[task, 'all'].mean:.1f}"
    beside = f"PyTorch: {theirs[block][0]:.1f}, {theirs['all'][0]:.1f}"
    return f"CIFAR-10, {claim} (%)", both, beside, _page("surgical")


def _digits(home: Path) -> tuple[str, ...]:
    tests = _tests(home / "surgical_methods_digits")
    ranks = tables.average_rank(tables.cells(tests, "task", "method"))
    best, second = list(ranks.items())[:2]
    claim = f"digits, {len(ranks)} methods on four shifts: average rank (1 is best)"
    ours = f"{best[0]} {best[1]:.1f}, {second[0]} {second[1]:.1f}"
    return claim, ours, f"full tuning {ranks['all']:.1f}", _page("surgical")


def _subset(home: Path) -> tuple[str, ...]:
    cells = tables.cells(
        _tests(home / "subtuning_greedy_corrupted"), "dataset", "method"
    )
    means = {method: cell.mean for (_, method), cell in cells.items()}
    ours = f"{means['SubTuning, cheap']:.1f}, full tuning {means['full']:.1f}"
    claim = "CIFAR-10, noise, 200 images: is a chosen subset better than all? (%)"
    return (
        claim,
        ours,
        f"linear probing {means['linear probing']:.1f}",
        _page("subtuning"),
    )


def _memo(home: Path) -> tuple[str, ...]:
    tests = [r for r in _tests(home / "surgical_test_time") if r["mode"] == "online"]
    cells = tables.cells(
        [r for r in tests if r["adaptation"] == "memo"], "mode", "method"
    )
    ours = ", ".join(f"{m} {cells['online', m].mean:.1f}" for m in PAPER_MEMO)
    paper = ", ".join(f"{value}" for value in PAPER_MEMO.values())
    claim = "online MEMO on CIFAR-10: does the first block gain, and full tuning lose?"
    return claim, ours, f"paper: {paper}", _page("test_time")


def _calm(home: Path) -> tuple[str, ...]:
    tests = _tests(home / "fast_adaptation_cifar100")

    def kept(method: str) -> float:
        runs = [records_of(row) for row in tests if row["method"] == method]
        return mean(records[-1].value["source"] for records in runs)

    claim = (
        "CIFAR-10 to CIFAR-100 by FAST: what is kept of the source after 150 steps (%)"
    )
    beside = f"a head as PyTorch starts it: {kept('torch'):.1f}"
    return claim, f"{kept('fast'):.1f}", beside, _page("fast")


def _modules(home: Path) -> tuple[str, ...]:
    tests = _tests(home / "transformer_modules" / "cola")
    frozen, full = gap(tests)
    norms = [r for r in relative_rows(tests) if r["module"] == "layer_norms"]
    share = sum(row["value"] for row in norms) / len(norms)
    claim = "MiniLM on CoLA, LayerNorms alone: share of full tuning's gain (%)"
    beside = f"Matthews' correlation: frozen {frozen:.1f}, fully tuned {full:.1f}"
    return claim, f"{share:.0f}", beside, _page("modules")


def _sparse(home: Path) -> tuple[str, ...]:
    tests = _tests(home / "diff_pruning_stsb")
    scores = [row for row in tests if row["metric"] == "spearman"]
    means = {m: c.mean for (_, m), c in tables.cells(scores, "task", "method").items()}
    claim = "MiniLM on STS-B, 0.5 % of the weights chosen by gates: Spearman (%)"
    ours = f"{means['constrained']:.1f}, full tuning {means['full']:.1f}"
    beside = (
        f"random {means['random']:.1f}, largest changes {means['non_adaptive']:.1f}"
    )
    return claim, ours, beside, _page("diff_pruning")


def _steps(home: Path) -> tuple[str, ...]:
    rows = results.read_all(home / "step_speed")
    seconds = {(row["method"], row["way"]): row["value"] for row in rows}
    ours = ", ".join(
        f"{name} {seconds[name, 'placed']:.2f}" for name in ("full", "last two layers")
    )
    theirs = ", ".join(
        f"{seconds[name, 'PyTorch']:.2f}" for name in ("full", "last two layers")
    )
    return (
        "seconds a step on a CPU, MiniLM's shape",
        ours,
        f"PyTorch: {theirs}",
        _page("speed"),
    )


def _storage(home: Path) -> tuple[str, ...]:
    rows = results.read_all(home / "storage_minilm")
    base = rows[0]["base_bytes"]
    exact = {row["method"]: row["value"] for row in rows if row["values"] == "exact"}
    thousand = {method: (base + 1000 * size) / 1e9 for method, size in exact.items()}
    ours = f"0.5 % of the kernels {thousand['elements_0.5']:.2f}"
    beside = f"LoRA of rank 8: {thousand['lora_8']:.2f}, copies: {base / 1e6:.1f}"
    return "GB for 1,000 tasks on one MiniLM", ours, beside, _page("keep")


def _serving(home: Path) -> tuple[str, ...]:
    rows = results.read_all(home / "multitask_inference_resnet50")
    (row,) = [row for row in rows if row["tasks"] == 8]
    return (
        "ResNet-50, 8 tasks that tuned its last block, served together: time of one model",
        f"{row['value'] / row['one']:.2f}",
        f"a model for each: {row['separate'] / row['one']:.2f}",
        _page("serving"),
    )
