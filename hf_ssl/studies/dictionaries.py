"""Measure what MoCo argues about dictionaries: how stale and how consistent keys are, and what negatives are worth.

    hf-ssl study dictionaries --dataset uoft-cs/cifar10 --num_images 4096 --output_dir runs/dictionaries
    hf-ssl study dictionaries --dataset shapes --methods moco --fit_from runs/dictionaries --output_dir runs/foretold

It trains the mechanisms of figure 2 of MoCo's paper (He et al., 2019): `end_to_end`, also with two networks
(`end_to_end-two`), `memory_bank`, and `moco` with each momentum, over the axes momentum, queue_size, batch_size,
num_images and learning_rate. All start from the same weights, see the same images in the same order, have the same
linear projector, temperature and constant learning rate, and compute in float32.

One line a run: k-NN accuracy (%); loss, and share of queries that pick their positive (%), over the last tenth;
cosine of keys and of the same views encoded now, of keys 16 steps old and of the oldest in the dictionary (1: fresh);
cosine of what query and key encoder make of a view; share of the dictionary's variance that age explains, and beside
it what batches alone explain (%); effective number of negatives; share of the query's class among the negatives (%);
spread of keys (1 even, 0 one point); megabytes of the dictionary, with a second network, and of what a step holds for
its backward pass; processor time of a step (ms). Cosines and negatives are means over the second half of the run.

`--fit_from` takes the drift of the queries in the first `--fit_steps` steps of other runs, and foretells the staleness
of all `moco` runs of this study, and a choice of queue and momentum, before the first is trained: predictions.json.
`--predict_only` ends there. Afterwards the report compares.

Killed or stopped? The same command continues; the run in hand begins again. A command with other axes adds its runs
to the folder. Writes dictionaries.json, dictionaries.md and figures of all runs that are there; `--drawn_from` makes
table and figures again from such a dictionaries.json.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from hf_ssl.data.settings import PLACES
from hf_ssl.studies.dictionaries_bench import RESULT, Bench
from hf_ssl.studies.dictionaries_report import HEAD, line_of, read_results, write_report
from hf_ssl.studies.dictionaries_runs import Run
from hf_ssl.studies.dictionaries_settings import DictionariesSettings
from hf_ssl.studies.dictionaries_theory import Predictions
from hf_ssl.studies.many_runs import StoppedError, check_one_process, claim_folder, finished_run, written_text
from hf_ssl.training.output import make_results_folder

logger = logging.getLogger(__name__)

# Settings that change the numbers of every run: one folder holds results of one choice of them. Axes may grow.
_COMMON = ("dataset", *PLACES, "split", "knn_split", "knn_images", "recipe", "encoder", "view_recipe", "num_steps")
_COMMON += ("temperature", "look_every")


@dataclass(frozen=True)
class DictionariesResult:
    """What became of each run, and of what was foretold.

    Args:
        runs: The runs that are finished; the first of each seed is the fresh encoder.
        num_runs: How many were asked for.
        said: What the runs say of the paper's claims and of the predictions.
        files: What was written.
        exit_code: 0, or 128 plus the number of the signal that stopped the study.
    """

    runs: list[Run]
    num_runs: int
    said: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    exit_code: int = 0

    def __str__(self) -> str:
        lines = [HEAD, *map(line_of, self.runs)] if self.runs else []
        if self.said:
            lines += ["", *self.said]
        return "\n".join([*lines, *written_text(self.files)])


def run(settings: DictionariesSettings) -> DictionariesResult:
    """Foretell if asked for, train what is missing, compare and write."""
    check_one_process()
    if settings.drawn_from is not None:
        runs, predictions = read_results(settings.drawn_from)
        make_results_folder(settings.output_dir, "output_dir")
        said, files = write_report(settings.output_dir, runs, predictions)
        return DictionariesResult(runs, len(runs), said, files)
    bench = Bench(settings)
    wanted = [(seed, cell) for seed in range(settings.seeds) for cell in (bench.fresh, *bench.cells)]
    if (known := settings.output_dir / Predictions.FILE).exists():
        Predictions.read(known)  # refused before the folder is claimed
    claim_folder(settings.output_dir, settings, _COMMON, bench.source)
    foretold = bench.foretell()
    if settings.predict_only and foretold is not None:
        return DictionariesResult([], len(wanted), foretold.said(), [settings.output_dir / Predictions.FILE])
    runs: list[Run] = []
    try:
        for seed, cell in wanted:
            runs.append(bench.run(cell, seed))
            logger.info("%d of %d runs: %s", len(runs), len(wanted), line_of(runs[-1]))
    except StoppedError as stopped:
        logger.warning(stopped.message(len(runs), len(wanted)))
        return DictionariesResult(runs, len(wanted), exit_code=stopped.exit_code)
    added = sorted(settings.output_dir.glob(f"*/seed*/{RESULT}"))
    all_runs = {(run.cell, run.seed): run for run in (*runs, *(finished_run(path, Run) for path in added))}
    said, files = write_report(settings.output_dir, list(all_runs.values()), foretold)
    return DictionariesResult(runs, len(wanted), said, files)
