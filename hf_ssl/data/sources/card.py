"""What the README.md of a folder, such as a cloned repository of the Hub, states about its data."""

from pathlib import Path
from typing import Any

import yaml
from datasets.exceptions import DatasetsError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from hf_ssl.errors import UserError


def read_card(name: str, folder: Path) -> tuple[MetadataConfigs, DatasetInfosDict]:
    """Configs and columns that the README of a repository states.

    Raises:
        UserError: If it cannot be read.
    """
    readme, more = folder / "README.md", folder / ".huggingface.yaml"
    try:
        states = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").lstrip().startswith("---")
        card: Any = DatasetCard.load(readme).data if states else DatasetCardData()
        if more.is_file():
            stated = yaml.safe_load(more.read_text(encoding="utf-8")) or {}
            card = DatasetCardData(**(card.to_dict() | stated))
        infos = DatasetInfosDict.from_dataset_card_data(card)
        if not infos and (folder / "dataset_infos.json").is_file():  # of former versions of `datasets`
            infos = DatasetInfosDict.from_directory(str(folder))
        return MetadataConfigs.from_dataset_card_data(card), infos
    except (ValueError, TypeError, KeyError, AttributeError, OSError, yaml.YAMLError, DatasetsError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"The README.md of `{name}` cannot be read as a data set's: {detail}. Repair it.") from error


def choose_config(name: str, configs: MetadataConfigs, wanted: str | None) -> tuple[str | None, dict[str, Any]]:
    """Name and parameters of the config that is used; None where there is none.

    Args:
        name: What messages call the data set.
        configs: From `read_card`.
        wanted: The user's choice; None: the default one.

    Raises:
        UserError: If there is no such config, or none is the default.
    """
    if wanted is not None and wanted not in configs:
        has = f"It has: {', '.join(configs)}." if configs else "Its README.md states no configs. Leave it out."
        raise UserError(f"`dataset_config` `{wanted}` must be a config of `{name}`. {has}")
    chosen = wanted or configs.get_default_config_name()
    if configs and chosen is None:
        raise UserError(f"`{name}` has several configs: {', '.join(configs)}. Choose one by `dataset_config`.")
    return chosen, dict(configs[chosen]) if chosen is not None else {}
