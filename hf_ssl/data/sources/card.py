"""What the README.md of a folder or a repository of the Hub states about its data."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets.config
import yaml
from datasets.data_files import sanitize_patterns
from datasets.exceptions import DatasetsError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

from hf_ssl.answers import hub_answers
from hf_ssl.data.decode.access import leads_outside
from hf_ssl.errors import UserError, first_line


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
        raise UserError(
            f"The README.md of `{name}` cannot be read as a data set's: {first_line(error)}. Repair it."
        ) from error


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


def check_inside(name: str, configs: Iterable[Mapping[str, Any]]) -> None:
    """Refuse configs of a README that name what does not belong to its folder or repository.

    A README from elsewhere could so make this program read any folder of this machine, or fetch addresses of the
    inner network.

    Args:
        name: What messages call the data set.
        configs: Parameters of the configs, as `choose_config` gives them.

    Raises:
        UserError: Names the first such path.
    """
    for params in configs:
        for path in named_places(params):
            if leads_outside(path):
                raise UserError(
                    f"The README.md of `{name}` must name files of its own folder, got `{path}`. If you want these "
                    "files, name them yourself, by `dataset` or `data_files`."
                )


def named_places(params: Mapping[str, Any]) -> list[str]:
    """`data_dir` and all patterns of `data_files` of a config, or of the arguments of `open_source`."""
    named = [params["data_dir"]] if params.get("data_dir") else []
    if params.get("data_files") is not None:
        named += [path for paths in sanitize_patterns(params["data_files"]).values() for path in paths]
    return list(map(str, named))


def check_hub_card(name: str, revision: str | None) -> None:
    """Refuse what the README of a repository names outside of it, before `datasets` looks there.

    Args:
        name: Id of a data set on the Hub; whether there is one, `datasets` says.
        revision: Its branch, tag or commit.

    Raises:
        UserError: See `check_inside`; or if what answers is not the Hub.
    """
    api = HfApi(endpoint=datasets.config.HF_ENDPOINT)
    folders = set()
    for file in ("README.md", ".huggingface.yaml"):
        try:
            with hub_answers():
                path = api.hf_hub_download(name, file, repo_type="dataset", revision=revision)
        except (EntryNotFoundError, HFValidationError, HfHubHTTPError, HTTPError, OSError):
            continue  # there is none; or `datasets` fails in the same way, and that becomes the message
        folders.add(Path(path).parent)
    for folder in folders:
        configs, _ = read_card(name, folder)
        check_inside(name, configs.values())
