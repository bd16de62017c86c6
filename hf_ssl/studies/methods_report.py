"""The methods that are compared, and the comparison in lines of text, as a table and as a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_ssl.figures.method_study import MethodRow, method_chart
from hf_ssl.studies.many_runs import mean_text
from hf_ssl.training.files import write_json

RANDOM = "random"
SUPERVISED = "supervised"


@dataclass(frozen=True)
class Variant:
    """A method with some of its settings, as a paper or its successor has them.

    Args:
        title: What the table calls it.
        method: Name in `hf_ssl.METHODS`.
        changes: Settings of its config that differ from its recipe's.
    """

    title: str
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    "end_to_end": Variant("End-to-end (SimCLR)", "end_to_end"),
    "memory_bank": Variant("Memory bank", "memory_bank"),
    "moco_v1": Variant("MoCo v1", "moco", {"projector": "linear", "temperature": 0.07, "symmetric": False}),
    "moco_v2": Variant("MoCo v2", "moco"),
    "moco_v3": Variant("MoCo v3", "moco_v3"),
    "mochi": Variant("MoCHi", "mochi"),
    "byol": Variant("BYOL", "byol"),
    "byol_linear": Variant("BYOL, linear predictor", "byol", {"predictor": "linear"}),
    "simsiam": Variant("SimSiam", "simsiam"),
    "linear": Variant("Linear predictor by gradient", "directpred", {"freq": 0}),
    "directpred": Variant("DirectPred", "directpred"),
    "directpred_freq5": Variant("DirectPred, every 5 steps", "directpred", {"freq": 5}),
    "directset": Variant("DirectSet, exponent 0.75", "directpred", {"rule": "directset", "exponent": 0.75}),
    "directcopy": Variant("DirectCopy", "directpred", {"rule": "directcopy", "epsilon": 0.3}),
    "directclr": Variant("DirectCLR", "directclr"),
    "contrastive_clustering": Variant("Contrastive Clustering", "contrastive_clustering"),
}
"""What `--methods` takes."""


_BESIDE = {RANDOM: "random encoder", SUPERVISED: "supervised"}


@dataclass(frozen=True)
class MethodRun:
    """What one run came to.

    Args:
        method: One of `VARIANTS`, `random` for an encoder that was not trained, or `supervised`.
        seed: Its seed.
        knn: Accuracy of weighted k-NN on the frozen encoder, in [0, 1].
        linear: Accuracy of a linear probe, in [0, 1].
        seconds: Time of training.
        weights: SHA-256 of the exported `model.safetensors`; None where nothing is exported.
    """

    method: str
    seed: int
    knn: float
    linear: float
    seconds: float
    weights: str | None = None


def line_of(one: MethodRun) -> str:
    """The numbers of one run, in one line."""
    return (
        f"{title_of(one.method)}, seed {one.seed}: k-NN {100 * one.knn:.1f} %, linear probe {100 * one.linear:.1f} %, "
        f"{one.seconds:.0f} s"
    )


def title_of(name: str) -> str:
    """What tables call a method, `random` or `supervised`."""
    return _BESIDE[name] if name in _BESIDE else VARIANTS[name].title


def rows_of(runs: Sequence[MethodRun]) -> list[MethodRow]:
    """Runs of the same method together: the random encoder first, then in the order of `VARIANTS`."""
    order = [RANDOM, SUPERVISED, *VARIANTS]
    together: dict[str, list[MethodRun]] = {}
    for one in sorted(runs, key=lambda run: (order.index(run.method), run.seed)):
        together.setdefault(one.method, []).append(one)
    return [
        MethodRow(
            title=title_of(name),
            knn=[one.knn for one in group],
            linear=[one.linear for one in group],
            seconds=[one.seconds for one in group],
        )
        for name, group in together.items()
    ]


def table_of(runs: Sequence[MethodRun]) -> str:
    """Table in Markdown: means over seeds, and standard deviations where there are several."""
    lines = ["| method | k-NN (%) | linear probe (%) | seconds |", "|---|---|---|---|"]
    for row in rows_of(runs):
        knn, linear = (mean_text([100 * value for value in values], 1) for values in (row.knn, row.linear))
        lines.append(f"| {row.title} | {knn} | {linear} | {mean_text(row.seconds, 0)} |")
    return "\n".join(lines) + "\n"


def differences_of(runs: Sequence[MethodRun]) -> str:
    """Which methods differ by more than their seeds do, in words.

    Two methods with several seeds differ if the means of their linear probes are further apart than both standard
    deviations together.
    """
    several = [row for row in rows_of(runs) if len(row.linear) > 1]
    if len(several) < 2:
        return "Methods with one seed each: how much of a difference is chance is not known.\n"
    several.sort(key=lambda row: mean(row.linear), reverse=True)
    leads = []
    for place, first in enumerate(several):
        below = []
        for second in several[place + 1 :]:
            difference = mean(first.linear) - mean(second.linear)
            if difference > stdev(first.linear) + stdev(second.linear):
                below.append(f"{second.title} ({100 * difference:.1f})")
        leads += [f"{first.title} over {', '.join(below)}"] if below else []
    named = f"{'; '.join(leads)}. Other pairs of these are not told apart." if leads else "none."
    count = f"{len(several)} methods with several seeds"
    return f"Differences of the linear probe above both standard deviations together, in points, of {count}: {named}\n"


def collapses_of(collapses: Sequence[Mapping[str, Any]]) -> str:
    """Which runs reported a collapse while they trained, in words; empty if none did.

    Args:
        collapses: `method`, `seed`, `kind` and `step` of each.
    """
    told = [
        f"{title_of(one['method'])}, seed {one['seed']} ({one['kind']}, step {one['step']:,})" for one in collapses
    ]
    return f"A collapse was reported in training by: {'; '.join(told)}.\n" if told else ""


def write_report(folder: Path, runs: Sequence[MethodRun], facts: Mapping[str, Any]) -> list[Path]:
    """Write numbers, table and figure.

    Args:
        folder: Where to: methods.json, methods.md and methods.png.
        runs: The finished runs, with at least one of a random encoder.
        facts: What all runs share, JSON-able, with the name of the `dataset`.

    Returns:
        The files.
    """
    files = [folder / "methods.json", folder / "methods.md", folder / "methods.png"]
    write_json(files[0], {**facts, "runs": [asdict(one) for one in runs]})
    told = differences_of(runs) + collapses_of(facts["collapses"])
    files[1].write_text(f"{table_of(runs)}\n{told}", encoding="utf-8")
    random, *trained = rows_of(runs)
    method_chart(trained, random, f"Frozen encoders on {facts['dataset']}").savefig(files[2])
    return files
