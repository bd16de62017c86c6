"""Settings of `hf-ssl study reproduce`."""

from pathlib import Path
from typing import Literal

from hf_ssl.data.settings import PlaceSettings
from hf_ssl.data.sources.open import DataLike
from hf_ssl.errors import UserError, near_name
from hf_ssl.evaluation.protocols import AUGMENTED
from hf_ssl.settings import check_least, check_positive, checked
from hf_ssl.studies.published import TABLES
from hf_ssl.studies.settings import chosen_names


@checked
class ReproduceSettings(PlaceSettings):
    """Which table, on which copy of its data.

    Args:
        table: directpred-cifar10, directpred-stl10, directpred-imagenet, moco-imagenet, mochi or
            contrastive-clustering.
        dataset: Where the table's data are: an id on the Hub, a folder, a file or an address, as for
            `hf-ssl pretrain`; needed unless `list`.
        output_dir: Folder of the runs; needed unless `list`, which looks there for what is done.
        runs: Names of runs of the table, as `list` shows them; all if not given.
        seeds: Runs of each kind, with seeds from 0; at least 1.
        split: Split to train on; the table's if not given.
        probe_split: Labelled split that the probe learns from; the table's if not given.
        test_split: Labelled split to measure on; the table's if not given.
        num_epochs: Epochs of each run, to try it out; those of the table if neither this nor `num_steps` is given.
        num_steps: Optimizer steps of each run, instead of `num_epochs`.
        batch_size: Images of a step, to try it out; the recipe's if not given.
        encoder: Architecture, to try it out; the recipe's if not given.
        eval_images: Images of each labelled split to measure on at most, at least 2; all if not given.
        augmented_passes: Passes of random crops that `linear-sgd` and `linear-byol` learn from, as the papers' do; see
            `hf-ssl evaluate`. 0: images as they are.
        mixed_precision: Precision of the forward and backward pass, as in pretraining; the recipe's if not given.
        compile: Compile the encoder, as in pretraining.
        cache: Where the decoded images are kept (`uint8`: on the device that trains), as in pretraining.
        num_workers: Worker processes that decode and augment, at least 0.
        list: Train nothing: show the runs, and the numbers of those that are done.
    """

    table: str
    dataset: DataLike | None = None
    output_dir: Path | None = None
    runs: list[str] | None = None
    seeds: int = 1
    split: str | None = None
    probe_split: str | None = None
    test_split: str | None = None
    num_epochs: float | None = None
    num_steps: int | None = None
    batch_size: int | None = None
    encoder: str | None = None
    eval_images: int | None = None
    augmented_passes: int = 0
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] | None = None
    compile: bool = False
    cache: Literal["none", "uint8"] = "none"
    num_workers: int = 2
    list: bool = False

    def validate_table(self) -> None:
        """Check what can be checked without data; runs that were not given become all of the table's."""
        if self.table not in TABLES:
            hint = near_name(self.table, TABLES) or f" Known: {', '.join(TABLES)}."
            raise UserError(f"`study reproduce` knows no table `{self.table}`.{hint}")
        found = TABLES[self.table]
        self._check_numbers()
        self.runs = [*found.rows] if self.runs is None else chosen_names(self.runs, [*found.rows], "run")
        if self.list:
            return
        test = self.test_split or found.test_split
        learnt = [self.split or found.split, self.probe_split or found.probe_split]
        # A clustering has no probe, and is measured on whatever it was trained on.
        if learnt[1] is not None and test in learnt:
            raise UserError(
                f"`test_split` is `{test}`, from which encoder or probe learn (`split` {learnt[0]}, `probe_split` "
                f"{learnt[1]}): measure on other images."
            )
        if self.dataset is None:
            raise UserError(
                f"`dataset` is needed: where {found.data} is, such as `--dataset {found.place}`. `--list` shows the "
                "runs without it."
            )
        if self.output_dir is None:
            raise UserError(f"`output_dir` is needed: the folder of the runs, such as `runs/{self.table}`.")

    def _check_numbers(self) -> None:
        check_least(self, seeds=1, num_steps=1, batch_size=1, eval_images=2, augmented_passes=0, num_workers=0)
        check_positive(self, "num_epochs")
        if self.num_epochs is not None and self.num_steps is not None:
            raise UserError("`num_epochs` and `num_steps` exclude each other. Give one of them.")
        protocol = TABLES[self.table].protocol
        if self.augmented_passes and protocol not in AUGMENTED:
            raise UserError(f"`augmented_passes` is for {' and '.join(AUGMENTED)}, not for {protocol}. Leave it out.")
