"""Measure again what an encoder's `results.json` says, by the settings that stand beside each number."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from torch import nn

from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.comparison import compare
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.evaluation.features import device_of
from hf_ssl.evaluation.protocols import AUGMENTED, BEST_EPOCH, PROTOCOLS, Measurement, title_of
from hf_ssl.evaluation.references import encoder_folder, hub_file, read_json

TOLERANCE = 0.001
"""What counts as equal: a tenth of a percentage point, less than cards print and more than rounding moves."""

Verdict = Literal["equal", "different", "not checkable here"]
_OF_THE_MACHINE = ("held_out_accuracy", "converged", "C", "l2")  # come out of the fit and may move with rounding
_HASH = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Check:
    """One claim and what was found.

    Args:
        what: The claim in words, such as `cifar10, split test, label: weighted k-NN`.
        verdict: What came out.
        claimed: Value in the file, 1 at best; None for the weights.
        measured: Value here; None if it could not be measured.
        reason: Why it could not, else empty.
    """

    what: str
    verdict: Verdict
    claimed: float | None = None
    measured: float | None = None
    reason: str = ""


def published_file(encoder: str, name: str) -> Path:
    """A file that lies beside the weights of an encoder.

    Args:
        encoder: Folder or repository, as `load_encoder` takes them.
        name: Of the file.

    Raises:
        UserError: If there is none.
    """
    folder = encoder_folder(encoder)
    if folder is None:
        repo = encoder.removeprefix("hf_hub:").removeprefix("hf-hub:")
        if repo.count("/") != 1 or encoder.startswith(("random:", "raw:")):
            raise UserError(
                f"`verify` needs an encoder with results beside it, got `{encoder}`. Give the folder of a run or "
                "encoder, or a repository as `ORG/NAME`."
            )
        return hub_file(repo, name)
    if not (folder / name).is_file():
        raise UserError(f"`{folder}` has no `{name}`, so there is nothing to verify. `hf-ssl evaluate` writes it.")
    return folder / name


def check_weights(encoder: str) -> Check | None:
    """Compare the SHA-256 that the model card names with that of `model.safetensors`; None if it names none."""
    try:
        card = published_file(encoder, "README.md")
    except UserError:
        return None  # without a card the numbers can still be measured
    named = _HASH.search(card.read_text(encoding="utf-8", errors="replace"))
    if named is None:
        return None
    found = hashlib.sha256(published_file(encoder, "model.safetensors").read_bytes()).hexdigest()
    return Check("weights: SHA-256 on the card", "equal" if found == named.group() else "different")


def claims_of(encoder: str) -> list[dict[str, Any]]:
    """The entries of an encoder's `results.json`.

    Raises:
        UserError: If it has none.
    """
    path = published_file(encoder, "results.json")
    entries = read_json(path).get("results")
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise UserError(f"`{path}` does not hold results: it must have a list `results` of objects.")
    return entries


def check_claims(
    entries: Sequence[Mapping[str, Any]],
    encoder: Encoder,
    open_split: Callable[[Mapping[str, Any], str], Source],
    *,
    method: nn.Module | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
) -> list[Check]:
    """Measure each claim again.

    Args:
        entries: Of `results.json`.
        encoder: The encoder.
        open_split: Opens a split of the data set of an entry; a `UserError` of it makes the claim not checkable.
        method: The encoder's method, if it has clusters of its own and is here.
        batch_size: Images in a forward pass.
        num_workers: Worker processes that decode.

    Returns:
        A check for each entry, in their order.
    """
    measured: dict[str, list[Measurement]] = {}
    checks = []
    for entry in entries:
        try:
            _check_form(entry)
            protocol = _protocol_of(entry, method)
            key = repr([protocol, *(entry.get(name) for name in _READ), _reading(entry)])
            if key not in measured:
                options = {"method": method, "batch_size": batch_size, "num_workers": num_workers}
                measured[key] = _measure(entry, protocol, encoder, open_split, options)
            checks.append(_compared(entry, measured[key]))
        except UserError as error:
            checks.append(Check(words_of(entry), "not checkable here", _value(entry), reason=str(error)))
    return checks


def _check_form(entry: Mapping[str, Any]) -> None:
    """Refuse an entry whose parts are not of the kind that `evaluate` writes: the file may come from anywhere.

    Raises:
        UserError: Names the part.
    """
    settings = entry.get("settings", {})
    if not isinstance(settings, Mapping):
        raise UserError(f"`settings` must be an object, got {settings!r}.")
    for place, kinds in ((entry, _FORM), (settings, _FORM_OF_SETTINGS)):
        for name, (kind, words) in kinds.items():
            if name not in place and (kind == _TEXT_OR_NONE or place is settings):
                continue
            value = place.get(name)
            is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            is_outside = kind is int and isinstance(value, int) and not 0 <= value < 2**63
            if not is_kind or is_outside or value != value:
                raise UserError(f"`{name}` must be {words}, got {value!r}.")
    if settings.get("augmented_passes", 0) > max(AUGMENTED.values()):
        raise UserError(f"no probe has {settings['augmented_passes']:,} `augmented_passes`.")
    value = _value(entry)
    if value is None or not math.isfinite(value):
        raise UserError(f"`value` must be a number, got {entry.get('value')!r}.")


_TEXT_OR_NONE = (str, NoneType)
_FORM = {name: (str, "text") for name in ("dataset", "split", "label", "protocol")}
_FORM |= {name: (_TEXT_OR_NONE, "text or null") for name in ("dataset_config", "train_split")}
_FORM |= {"num_images": (int, "an integer of at least 0")}
_FORM_OF_SETTINGS = {
    name: (int, "an integer of at least 0") for name in ("k", "seed", "train_images", "augmented_passes")
}
_FORM_OF_SETTINGS |= {"temperature": ((int, float), "a number"), "bf16": (bool, "true or false")}

_OF_READING = ("k", "temperature", "seed", "train_images", "augmented_passes")
_SINCE_LATER = ("bf16",)  # results of earlier versions do not have it, and are taken for float32
_READ = ("dataset", "dataset_config", "split", "train_split", "label", "num_images")


def _protocol_of(entry: Mapping[str, Any], method: nn.Module | None) -> str:
    name = str(entry.get("protocol"))
    protocol = "clustering" if name.startswith("clustering-") else name.removesuffix(BEST_EPOCH)
    if protocol not in PROTOCOLS:
        raise UserError(f"`{name}` does not measure a frozen encoder.")
    if _settings(entry).get("algorithm") == "cluster head" and method is None:
        raise UserError("the clusters are those of the method, whose folder `pretraining` is not here.")
    return protocol


def _settings(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return entry.get("settings") or {}


def _reading(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of one reading share."""
    return {name: _settings(entry)[name] for name in (*_OF_READING, *_SINCE_LATER) if name in _settings(entry)}


def _measure(
    entry: Mapping[str, Any],
    protocol: str,
    encoder: Encoder,
    open_split: Callable[[Mapping[str, Any], str], Source],
    options: Mapping[str, Any],
) -> list[Measurement]:
    given = _reading(entry)
    device = device_of(encoder.module).type
    if given.get("bf16") and device != "cuda":
        raise UserError(f"its features were computed in bfloat16 (`bf16`), which needs a CUDA device, not `{device}`.")
    test = open_split(entry, entry["split"])
    train_split = entry.get("train_split")
    if train_split is None and protocol != "clustering":
        raise UserError("it does not say `train_split`, whose labels it was learnt from.")
    train = test if train_split is None else open_split(entry, train_split)
    for source in {id(one): one for one in (train, test)}.values():
        if entry["label"] not in source.labels:
            raise UserError(f"split `{source.split}` of `{source.name}` has no label column `{entry['label']}`.")
    own = {name: given[name] for name in ("temperature", "seed", "augmented_passes", "bf16") if name in given}
    # A sample of either split has as many images as the larger of the two counts, or is the whole split.
    sample = max(given.get("train_images", 0), entry["num_images"])
    found: list[Measurement] = []
    # Where images are damaged or without a label, the whole split has more rows than it has images that count.
    for max_images in (sample, None) if sample > 0 else (None,):
        found = compare(
            {"claims": encoder},
            *(train, test, [entry["label"]], [protocol]),
            **own,
            k=given.get("k", 200),
            max_images=max_images,
            **options,
        ).own
        if all(_has_the_images(entry, one) for one in found):
            break
    return found


def _has_the_images(entry: Mapping[str, Any], one: Measurement) -> bool:
    """Whether a number was measured on as many images as a claim says."""
    claimed = _settings(entry).get("train_images")
    return one.num_images == entry["num_images"] and one.settings.get("train_images") == claimed


def _compared(entry: Mapping[str, Any], measured: Sequence[Measurement]) -> Check:
    same = [one for one in measured if one.protocol == entry["protocol"]]
    claimed = _value(entry)
    if not same or claimed is None:
        raise UserError("it is not a number that this version measures.")
    (one,) = same
    if one.num_images != entry["num_images"]:
        raise UserError(f"it is of {entry['num_images']:,} labelled images, and here are {one.num_images:,}.")
    unsaid = [name for name in _OF_READING if name in one.settings and name not in _settings(entry)]
    if unsaid:
        raise UserError(f"its `settings` do not say {', '.join(f'`{name}`' for name in unsaid)}.")
    for name, value in _settings(entry).items():
        if name not in _OF_THE_MACHINE and one.settings.get(name) != value:
            raise UserError(f"it has `{name}` {value}, and here it would be {one.settings.get(name)}.")
    is_equal = abs(one.value - claimed) <= TOLERANCE
    return Check(words_of(entry), "equal" if is_equal else "different", claimed, one.value)


def _value(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("value")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def words_of(entry: Mapping[str, Any]) -> str:
    """What an entry of `results.json` claims."""
    name = str(entry.get("protocol"))
    known = name.startswith("clustering-") or name.removesuffix(BEST_EPOCH) in PROTOCOLS
    title = title_of(name) if known else name
    return f"{Path(str(entry.get('dataset'))).name}, split {entry.get('split')}, {entry.get('label')}: {title}"
