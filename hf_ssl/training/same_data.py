"""Whether a run that goes on reads the data that it began with, and if not, what has changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ssl.data.settings import PLACES
from hf_ssl.data.sources.identity import difference_from, write_listing
from hf_ssl.data.sources.open import Source
from hf_ssl.errors import UserError
from hf_ssl.training.files import LISTING
from hf_ssl.training.record import RunRecord

_CHOICES = ("dataset", "split", *PLACES, "index_column")  # settings of which one may explain other data


def keep_listing(source: Source, output_dir: Path, begins: bool) -> None:
    """Write the names and sizes of the files of a run's data set into its folder, once.

    Args:
        source: The data set.
        output_dir: Folder of the run.
        begins: Whether the run begins now: the list of a start that was refused before may be of other data.
    """
    listing = output_dir / LISTING
    if listing.exists() and not begins:
        return
    listing.unlink(missing_ok=True)
    write_listing(source, listing)


def check_same_data(checkpoint: Path, then: Mapping[str, Any], run: RunRecord, source: Source) -> None:
    """Refuse to go on with other images.

    Args:
        checkpoint: Named in the message; the folder of its run tells what the data were.
        then: Identity of the checkpoint.
        run: The record of this run.
        source: The data set now.

    Raises:
        UserError: If its fingerprint is another. Names the first file that differs, else the settings that do.
    """
    if then.get("fingerprint") == run.data["fingerprint"]:
        return
    folder = checkpoint.parent.parent
    found = difference_from(folder / LISTING, source)
    if found is None:
        former = RunRecord.read(folder)
        before = {} if former is None else former.data
        changed = [
            f"`{name}` was {_shown(before.get(name))} and is {_shown(run.data.get(name))} now"
            for name in _CHOICES
            if name in before and before[name] != run.data.get(name)
        ]
        found = ", ".join(changed) or "it has other images, or another revision"
    raise UserError(
        f"The data set `{source.name}`, split `{source.split}`, is not the one of `{checkpoint}`: {found}. Give the "
        "data that it was, or start another run in another `output_dir`."
    )


def _shown(value: Any) -> str:
    return "not given" if value is None else f"`{value}`"
