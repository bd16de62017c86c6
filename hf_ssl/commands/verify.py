"""`hf-ssl evaluate --verify`: whether the numbers that an encoder is published with come out here too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_ssl.commands.encoder_settings import ReadingSettings, method_of
from hf_ssl.data.sources.open import Source, name_of
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import encoder_folder, load_encoder
from hf_ssl.evaluation.results import results_in
from hf_ssl.evaluation.verification import (
    TOLERANCE,
    Check,
    check_claims,
    check_weights,
    claims_of,
    published_file,
    words_of,
)
from hf_ssl.hub.model_card import other_numbers
from hf_ssl.hub.public import public_results
from hf_ssl.private import public_path
from hf_ssl.training.record import RunRecord


@dataclass(frozen=True)
class VerificationResult:
    """What became of each claim.

    Args:
        checks: One for each number, for the weights if the card names their SHA-256, and for each number that the card
            shows otherwise than the results.
    """

    checks: list[Check]

    @property
    def exit_code(self) -> int:
        """1 if a claim came out different, else 0."""
        return int(any(one.verdict == "different" for one in self.checks))

    def __str__(self) -> str:
        width = max((len(one.what) for one in self.checks), default=0)
        lines = []
        for one in self.checks:
            numbers = [f"{100 * value:.2f}" for value in (one.claimed, one.measured) if value is not None]
            found = f"{one.verdict}{': ' if one.reason else ''}{one.reason}"
            lines.append(f"{one.what:<{width}}  {' -> '.join(numbers):>14}  {found}")
        counts = {verdict: sum(one.verdict == verdict for one in self.checks) for verdict in _VERDICTS}
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return "\n".join([*lines, f"{said} (equal: within {100 * TOLERANCE:g} percentage points)"])


_VERDICTS = ("equal", "different", "not checkable here")


def verify(encoder: str, settings: ReadingSettings) -> VerificationResult:
    """Measure again what the results file beside an encoder says.

    Args:
        encoder: Folder, run or repository.
        settings: Where the data sets are, and where the encoder runs.

    Raises:
        UserError: If there is no encoder, or no results beside it.
    """
    entries = claims_of(encoder)
    names = sorted({str(entry.get("dataset")) for entry in entries})
    if settings.dataset is not None and len(names) > 1 and not any(_is_called(settings, name) for name in names):
        raise UserError(
            f"`dataset` must be called like one of the data sets in the results, {', '.join(names)}, because there "
            f"are several, got `{name_of(settings.dataset)}`."
        )
    loaded = load_encoder(encoder, settings.torch_device())
    weights = check_weights(encoder)
    method = method_of(encoder_folder(encoder), settings.torch_device())
    checks = check_claims(
        entries,
        loaded,
        _opener(settings, set(names), _trained_on(encoder_folder(encoder))),
        method=method if hasattr(method, "assign") else None,
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
    )
    return VerificationResult([*([] if weights is None else [weights]), *_card_checks(encoder), *checks])


def _card_checks(encoder: str) -> list[Check]:
    """A check for each number that the model card shows otherwise than the results file, which it is made of."""
    try:
        card = published_file(encoder, "README.md").read_text(encoding="utf-8", errors="replace")
        shown = other_numbers(card, public_results(results_in(published_file(encoder, "results.json")), {}))
    except UserError:  # no card, or results of another form, each of which is told by itself
        return []
    reason = "this is what `results.json` says"
    return [
        Check(f"{where} of the card: {words_of(entry)}", "different", number, entry["value"], reason)
        for entry, where, number in shown
    ]


def _trained_on(folder: Path | None) -> dict[str, str]:
    """Where the folder lies that a run here was trained on, by the name that is published of it."""
    record = RunRecord.read(folder.parent) if folder is not None and folder.name == "encoder" else None
    if record is None or record.data.get("dataset_kind") != "local" or "dataset" not in record.data:
        return {}
    return {public_path(record.data["dataset"]): record.data["dataset"]}


def _is_called(settings: ReadingSettings, name: str) -> bool:
    """Whether the copy that the user named has the last part of a data set's name."""
    return Path(name_of(settings.dataset)).name == Path(name).name


def _opener(
    settings: ReadingSettings, datasets: set[str], known: Mapping[str, str]
) -> Callable[[Mapping[str, Any], str], Source]:
    """Opens the splits of a claim: of the data set that it names, or of a copy that the user named for it.

    Args:
        settings: Name the copy.
        datasets: All names in the claims.
        known: Path of a folder by the name that is published of it.
    """
    opened: dict[tuple[str, str | None, str], Source] = {}

    def open_split(entry: Mapping[str, Any], split: str) -> Source:
        name = str(entry.get("dataset"))
        given = settings.dataset
        # A published name of a folder is its last part; a copy may lie under another name.
        is_copy = given is not None and (len(datasets) == 1 or _is_called(settings, name))
        if not is_copy and entry.get("dataset_kind") == "local" and name not in known:
            raise UserError(f"it was measured on a folder called `{name}`. `--dataset` names your copy of it.")
        place = given if is_copy else known.get(name, name)
        key = (str(place), entry.get("dataset_config"), split)
        if key not in opened:
            column, config = entry.get("label"), settings.dataset_config or entry.get("dataset_config")
            there = replace(settings, dataset=place, dataset_config=config)
            # The main label column and, for data sets with several, all of them.
            opened[key] = there.open(split)
            if column not in opened[key].labels:
                return replace(there, label_column=column).open(split)
        return opened[key]

    return open_split
