"""Settings that the commands share which run a frozen encoder over a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForPreTraining

from hf_ssl.data.settings import PlaceSettings
from hf_ssl.data.sources.open import Source, open_source
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import encoder_folder
from hf_ssl.evaluation.references import read_json
from hf_ssl.hub.embedding import SHOWN_BY_DEFAULT
from hf_ssl.modules.quiet import quiet_transformers
from hf_ssl.settings import check_least, checked
from hf_ssl.training.output import make_folder
from hf_ssl.training.record import RunRecord


@checked
class ReadingSettings(PlaceSettings):
    """Which images an encoder looks at, and where it runs.

    Args:
        dataset: `shapes`, `digits`, a folder or file that `datasets.load_dataset` reads (images, parquet, arrow, csv,
            json, webdataset tars, zip archives), an address, or the id of a data set on the Hub, which is streamed.
        batch_size: Images in a forward pass, at least 1.
        num_workers: Processes that decode, at least 0.
        device: Where the encoder runs; `auto` is CUDA if there is a device.
        seed: Seed of everything random, such as `random:ENCODER`, at least 0.
    """

    dataset: Any
    batch_size: int = 256
    num_workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def check_reading(self) -> None:
        """Check what can be checked without the data; called by each command's `validate_`.

        Raises:
            UserError: If a number is too small or the device is missing.
        """
        check_least(self, batch_size=1, num_workers=0, seed=0)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("`device` cuda needs a CUDA device, but PyTorch sees none. Leave it out.")

    def open(self, split: str) -> Source:
        """Open one split of the data set."""
        return open_source(self.dataset, split=split, **self.places())

    def torch_device(self) -> str:
        """`device` with `auto` resolved."""
        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def titles_of(encoders: Sequence[str]) -> dict[str, str]:
    """What tables and figures call encoders: local ones by their run's name, not its path, if that names only one."""
    short = {}
    for name in encoders:
        folder = encoder_folder(name)
        resolved = folder.resolve() if folder is not None else None
        run = resolved.parent if resolved is not None and resolved.name == "encoder" else resolved
        short[name] = run.name if run is not None else name
    titles = list(short.values())
    return {name: title if titles.count(title) == 1 else name for name, title in short.items()}


def goes_on_card(
    settings: ReadingSettings, folder: Path | None, card: bool | None = None, output: Path | None = None
) -> bool:
    """Whether numbers and pictures of a data set may go into an encoder's folder, and be published with it.

    Args:
        settings: Name the data set.
        folder: Folder of the encoder; None if it is not a local one.
        card: What the user said; None leaves it to the data set: yes for embedded ones, those of the Hub, and the one
            that the encoder was trained on.
        output: Another place that the user gave.
    """
    if folder is None or output is not None:
        return False
    if card is not None:
        return card
    if not isinstance(settings.dataset, str):
        return False
    path = Path(settings.dataset).expanduser()
    if settings.dataset in SHOWN_BY_DEFAULT or not path.exists():
        return True
    # The encoder's own record, which is published, does not tell where the data set lies.
    record = (RunRecord.read(folder.parent) if folder.name == "encoder" else None) or RunRecord.read(folder)
    trained_on = None if record is None else record.data.get("dataset")
    return trained_on is not None and Path(trained_on).expanduser().resolve() == path.resolve()


def place_beside(folder: Path) -> Path:
    """Where results lie that are not published: `evaluations` in a run, else beside the encoder's folder."""
    folder = folder if folder.name else folder.resolve()
    return folder.parent / ("evaluations" if folder.name == "encoder" else f"{folder.name}-evaluations")


def how_to_load(folder: Path) -> str:
    """The lines that load a local encoder; empty for one that transformers cannot load by itself."""
    config = read_json(folder / "config.json")
    if "pretrained_cfg" not in config or "model_type" not in config:
        return ""
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    return (
        f"\nThe encoder is in {folder}. To load it, without hf_ssl:\n\n"
        f"    from transformers import AutoImageProcessor, AutoModel\n"
        f'    processor = AutoImageProcessor.from_pretrained("{folder}"{trust})\n'
        f'    model = AutoModel.from_pretrained("{folder}"{trust})\n'
        f'    features = model(**processor(image.convert("RGB"), return_tensors="pt")).pooler_output\n'
    )


def check_output_file(path: Path, setting: str) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold; makes its folder.

    Raises:
        UserError: If it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise UserError(f"`{setting}` must be a file, but `{path}` is a folder. Give the name of a file in it.")
    make_folder(path.parent, setting, "Give a file in another folder.")


_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def check_picture_ending(path: Path, setting: str) -> None:
    """Refuse the name of a picture whose ending stands for no format that can be written.

    Raises:
        UserError: Names the endings.
    """
    if path.suffix.lower() not in _PICTURES:
        raise UserError(f"`{setting}` must end in one of {', '.join(_PICTURES)}, got `{path}`.")


def method_of(folder: Path | None, device: str = "cpu") -> nn.Module | None:
    """The method of a run, in evaluation mode, if an encoder folder belongs to a run."""
    pretraining = folder.parent / "pretraining" if folder is not None and folder.name == "encoder" else None
    if pretraining is None or not (pretraining / "config.json").is_file():
        return None
    with quiet_transformers():
        return AutoModelForPreTraining.from_pretrained(pretraining).to(device).eval()
