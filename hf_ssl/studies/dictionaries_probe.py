"""What is looked at while a dictionary is used: its keys as they were stored, and the same views encoded again.

A key depends on its batch, through BatchNorm, and where keys are shuffled on random numbers. To compare only weights,
whole batches are kept with the state of the random generators, and encoded again in training mode by a copy of the
model: with the weights of then the copy gives the same keys bit for bit. The copy takes the changes of statistics and
dictionary; generators are put back. So the run is the one that nobody looks at.
"""

import copy
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_ssl.data.order.stream import Batch
from hf_ssl.diagnostics import (
    age_share,
    effective_negatives,
    false_negative_share,
    false_negative_weight,
    feature_std,
    key_agreement,
)
from hf_ssl.methods.base import SSLOutput, SSLPreTrainedModel
from hf_ssl.methods.memory_bank import MemoryBankForPreTraining
from hf_ssl.methods.moco import MoCoForPreTraining
from hf_ssl.studies.dictionaries_models import bytes_held, copy_queries, entries_of, vectors_of
from hf_ssl.training.batches import inputs_of
from hf_ssl.training.checkpoint import random_state, set_random_state
from hf_ssl.training.pretraining import Pretraining

AGES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Ages in steps at which keys are encoded again."""

_GROUPS = 16  # batches of the dictionary that are encoded again at the end


@dataclass
class Look:
    """What the dictionary was before one step.

    Args:
        step: Optimizer steps done.
        ages: Ages of the batches that were encoded again, in steps, ascending.
        keys: Cosine of their keys then and now, for each age.
        queries: The same of their queries.
        entries: The same of what the dictionary still holds of them and their keys now; None where nothing is left.
        length: Length of the queries of the batch in hand before normalisation, root of the mean square.
        lag: Cosine of what key encoder and query encoder make of the same views now.
        effective: Effective number of negatives.
        negatives: Number of negatives.
        false_share: Share of the negatives that are of the query's class; None without labels, as is the next.
        false_weight: Their share of the softmax's weight.
        spread: Standard deviation of the keys of the batch, 1 if even over the sphere, 0 if one point.
    """

    step: int
    ages: list[int]
    keys: list[float]
    queries: list[float]
    entries: list[float | None]
    length: float
    lag: float
    effective: float
    negatives: int
    false_share: float | None
    false_weight: float | None
    spread: float


@dataclass
class Kept:
    """A batch as it was encoded.

    Args:
        inputs: Of `forward`.
        generators: State of the random generators before the forward pass.
        keys: What the key encoder made of it.
        queries: What the query encoder made of it.
    """

    inputs: dict[str, Tensor]
    generators: dict[str, Any] = field(default_factory=dict)
    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    queries: Tensor = field(default_factory=lambda: torch.empty(0))


class Probe:
    """Looks at the dictionary of a method before some of its steps.

    Args:
        model: The method, not `symmetric`, so that the second entry of its projections are the keys.
        num_steps: Of the run, at least 1.
        every: Steps between two looks, at least 1; the first is before the first step and the last before the last.
        batch_size: Images of a step.

    Attributes:
        looks: What was seen.
        consistency: Share of the variance of the dictionary's keys that their age explains before the last step, of
            the keys as stored and of the same views encoded now; None before, and where all keys have one age.
        held: Bytes that a forward pass holds for the backward pass, without weights.
    """

    def __init__(self, model: SSLPreTrainedModel, num_steps: int, every: int, batch_size: int):
        self.model = model
        self.looks: list[Look] = []
        self.consistency: tuple[float, float] | None = None
        self.held = 0
        self._looking, self._begun, self._ended = 0.0, 0.0, 0.0
        self._step = 0  # steps done
        self._last = num_steps - 1
        self._when = {*range(0, num_steps, every), self._last}
        size = entries_of(model)
        horizon = min(self._last, -(-size // batch_size)) if size else 0
        groups = min(_GROUPS, horizon)
        self._in_dictionary = sorted({self._last - 1 - n * horizon // groups for n in range(groups)})
        self._uses: dict[int, int] = {}  # last look at each batch that is kept
        for now in sorted(self._when):
            for age in AGES:
                if age <= now:
                    self._uses[now - age] = now
        self._uses |= dict.fromkeys(self._in_dictionary, self._last)
        self._kept: dict[int, Kept] = {}
        self._written = torch.full((size,), -1)  # step in which each entry was written
        self._labels = torch.full((size,), -1)

    def before(self, inputs: dict[str, Tensor]) -> None:
        """Called before the forward pass of a step, whose generators it leaves as they are.

        Args:
            inputs: Of that pass.
        """
        start = time.process_time()
        self._begun = self._begun or start
        self._now = Kept(inputs)
        if self._step in self._when or self._step in self._uses:
            self._now.generators = random_state(self.model.device)
        if self._step in self._when:
            self._look(inputs)
            set_random_state(self._now.generators, self.model.device)
        self._looking += time.process_time() - start

    def after(self, output: SSLOutput) -> None:
        """Called after the forward pass of a step.

        Args:
            output: What it gave.
        """
        start = time.process_time()
        queries, keys = vectors_of(output)
        if self._step in self._uses:
            self._now.queries, self._now.keys = queries, keys
            self._kept[self._step] = self._now
        self._note_entries(self._now.inputs)
        self._step += 1
        self._kept = {step: kept for step, kept in self._kept.items() if self._uses[step] >= self._step}
        self._ended = time.process_time()
        self._looking += self._ended - start

    @property
    def step_seconds(self) -> float:
        """Processor time of a step in this process, without looking, since the first forward pass."""
        return (self._ended - self._begun - self._looking) / max(1, self._step)

    def _note_entries(self, inputs: dict[str, Tensor]) -> None:
        """Which entries of the dictionary this step has written, and of which class."""
        columns = self._columns(inputs)
        if columns is not None:
            self._written[columns] = self._step
            if "labels" in inputs:
                self._labels[columns] = inputs["labels"].cpu()

    def _columns(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """Entries of the batch of the last forward pass."""
        if isinstance(self.model, MemoryBankForPreTraining):
            return inputs["indices"].cpu()
        if isinstance(self.model, MoCoForPreTraining):
            count, size = len(inputs["pixel_values"]), len(self._written)
            return (int(self.model.get_buffer("queue_position")) - count + torch.arange(count)) % size
        return None

    @torch.no_grad()
    def _look(self, inputs: dict[str, Tensor]) -> None:
        twin = copy.deepcopy(self.model)
        entries = self._entries()
        queries, keys = self._encoded(twin, self._now)
        look = Look(
            step=self._step,
            **{name: [] for name in ("ages", "keys", "queries", "entries")},
            length=self._length(twin),
            lag=1.0,
            spread=(feature_std(keys) * keys.shape[1] ** 0.5).item(),
            **self._negatives(inputs, queries, keys, entries),
        )
        for age in AGES:
            kept = self._kept.get(self._step - age)
            if kept is None:
                continue
            queries_now, keys_now = self._encoded(twin, kept)
            look.ages.append(age)
            look.queries.append(key_agreement(kept.queries, queries_now).item())
            look.keys.append(key_agreement(kept.keys, keys_now).item())
            look.entries.append(self._of_entries(self._step - age, kept, keys_now, entries))
        self.looks.append(look)
        if self._step == self._last:
            self.held = bytes_held(twin, inputs)
            self.consistency = self._consistency(twin, entries)
        # The views of the keys by the weights of the query encoder, in the same groups of BatchNorm.
        copy_queries(twin)
        look.lag = key_agreement(self._encoded(twin, self._now)[1], keys).item()

    def _encoded(self, twin: SSLPreTrainedModel, kept: Kept) -> tuple[Tensor, Tensor]:
        set_random_state(kept.generators, self.model.device)
        return vectors_of(twin(**kept.inputs))

    def _length(self, twin: SSLPreTrainedModel) -> float:
        set_random_state(self._now.generators, self.model.device)
        projections = twin(**self._now.inputs).projections
        return 0.0 if projections is None else projections[:, 0].float().square().sum(dim=1).mean().sqrt().item()

    def _entries(self) -> Tensor | None:
        """The dictionary as it is, (entries, dim)."""
        if isinstance(self.model, MemoryBankForPreTraining):
            return self.model.bank.clone()
        if isinstance(self.model, MoCoForPreTraining):
            return self.model.queue.T.clone()
        return None

    def _of_entries(self, step: int, kept: Kept, keys: Tensor, entries: Tensor | None) -> float | None:
        """Cosine of what the dictionary still holds of a batch and of its keys now."""
        if entries is None:
            return None
        places = (self._written == step).nonzero()[:, 0]
        if isinstance(self.model, MemoryBankForPreTraining):
            indices = kept.inputs["indices"].cpu()
            rows = (self._written[indices] == step).nonzero()[:, 0]
            places = indices[rows]
        elif len(places) < len(keys):  # in part written over; which is which is not looked up
            return None
        else:
            start = int(self.model.get_buffer("queue_position")) - len(keys) * (self._step - step)
            places, rows = (start + torch.arange(len(keys))) % len(entries), torch.arange(len(keys))
        return key_agreement(entries[places], keys[rows]).item() if len(rows) else None

    def _negatives(
        self, inputs: dict[str, Tensor], queries: Tensor, keys: Tensor, entries: Tensor | None
    ) -> dict[str, Any]:
        """Numbers of `Look` about the negatives of the batch in hand."""
        config: Any = self.model.config
        labels = inputs["labels"].cpu() if "labels" in inputs else torch.full((len(queries),), -1)
        own = torch.eye(len(queries), dtype=torch.bool)
        if entries is None:
            of_keys, left_out, candidates = labels, own, keys
        elif isinstance(self.model, MemoryBankForPreTraining):
            generator = torch.Generator().manual_seed(self._step)
            count = min(config.num_negatives, len(entries))
            drawn = torch.randperm(len(entries), generator=generator)[:count]
            of_keys, candidates = self._labels[drawn], entries[drawn]
            left_out = inputs["indices"].cpu()[:, None] == drawn
        else:
            of_keys, candidates = self._labels, entries
            left_out = torch.zeros(len(queries), len(entries), dtype=torch.bool)
        scores = (queries @ candidates.T).cpu().masked_fill(left_out, -torch.inf)
        of_keys = of_keys.expand(len(queries), -1).masked_fill(left_out, -1)
        known = bool((labels >= 0).any() and (of_keys >= 0).any())
        return {
            "effective": effective_negatives(scores, config.temperature).item(),
            "negatives": round((~left_out).sum(dim=1).float().mean().item()),
            "false_share": false_negative_share(labels, of_keys).item() if known else None,
            "false_weight": false_negative_weight(scores, labels, of_keys, config.temperature).item()
            if known
            else None,
        }

    def _consistency(self, twin: SSLPreTrainedModel, entries: Tensor | None) -> tuple[float, float] | None:
        """Share of variance that age explains, of entries of some batches and of their keys now; None of one age."""
        stored, fresh, ages = [], [], []
        for step in self._in_dictionary:
            kept = self._kept[step]
            _, keys = self._encoded(twin, kept)
            if isinstance(self.model, MemoryBankForPreTraining) and entries is not None:
                indices = kept.inputs["indices"].cpu()
                rows = (self._written[indices] == step).nonzero()[:, 0]
                stored.append(entries[indices[rows]])
            else:
                rows = torch.arange(len(keys))
                stored.append(kept.keys)
            fresh.append(keys[rows])
            ages += [self._step - step] * len(rows)
        age = torch.tensor(ages)
        if len(age.unique()) < 2:
            return None
        return age_share(torch.cat(stored).cpu(), age).item(), age_share(torch.cat(fresh).cpu(), age).item()


class ObservedPretraining(Pretraining):
    """Pretraining of a method whose dictionary is looked at.

    Args:
        probe: Looks.
        arguments: Of `Pretraining`; a forward pass has all images of a step.
    """

    def __init__(self, probe: Probe, *arguments: Any):
        super().__init__(*arguments)
        self.probe = probe

    def forward(self, network: nn.Module, batch: Batch) -> SSLOutput:
        """The forward pass of a batch, between two calls of the probe."""
        inputs = inputs_of(batch, self.normalize, self.device)
        self.probe.before(inputs)
        output = network(**inputs)
        self.probe.after(output)
        return output
