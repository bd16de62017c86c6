"""A whole split as uint8 pictures on the device, so that a batch needs no reading, decoding or sending of pixels.

The records that remain say which picture comes when. They lie in shards of the same number and sizes as the data
set's, so that whatever orders those orders these alike.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow as pa
import torch
from datasets.iterable_dataset import ArrowExamplesIterable
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from hf_ssl.data.decode.access import Access
from hf_ssl.data.decode.pictures import SkippedImageError, decode
from hf_ssl.data.order.lanes import placed_examples
from hf_ssl.data.order.loader import make_loader
from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.sources.files import INDEX_COLUMN, PlacedExamples
from hf_ssl.data.sources.open import Source
from hf_ssl.data.views.device import send
from hf_ssl.data.views.device_colour import DeviceColour
from hf_ssl.data.views.device_crops import DeviceCrops, check_recipe
from hf_ssl.data.views.draws import draw_pairs
from hf_ssl.data.views.recipes import ViewRecipe
from hf_ssl.errors import UserError

_RECORDS_AT_ONCE = 64
_LARGEST_SHARE = 0.8  # of the free memory; the rest is for the network's activations


@dataclass(frozen=True)
class Cache:
    """A decoded split.

    Args:
        source: The data set, but the path of each image is its place in `pictures`.
        pictures: (images, height, width, 3), uint8, on the device; black where an image cannot be used.
        reasons: Place of each image that cannot be used -> why.
    """

    source: Source
    pictures: Tensor
    reasons: dict[int, str]


class CachedDraws:
    """What remains of `Views` for the CPU where the device has the pictures: the draws.

    Args:
        recipe: What to do.
        cache: The pictures.

    Raises:
        UserError: If the recipe has a policy.
    """

    def __init__(self, recipe: ViewRecipe, cache: Cache):
        check_recipe(recipe, "`cache` uint8", "`cache` to none")
        self.recipe = recipe
        self._reasons = cache.reasons
        self._height, self._width = cache.pictures.shape[1:3]

    def pictures(self, images: pa.Array) -> Iterator[int | SkippedImageError]:
        """Places in the cache of the images of its records, or why one cannot be used."""
        for path in images.field("path").to_pylist():
            reason = self._reasons.get(int(path))
            yield int(path) if reason is None else SkippedImageError(reason)

    def __call__(self, pictures: Sequence[int], numbers: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Draw the two views of some pictures.

        Args:
            pictures: Their places.
            numbers: Uniform in [0, 1), (pictures, 2, NUM_DRAWS).

        Returns:
            The places, (pictures,), int64, and rows of `draws.py`, (pictures, 2, ROW_LENGTH), float32.
        """
        heights, widths = np.full(len(numbers), self._height), np.full(len(numbers), self._width)
        rows = draw_pairs(heights, widths, self.recipe, numbers)
        return torch.tensor(pictures), torch.from_numpy(rows).float()


class CachedViews:
    """Views of cached pictures, made on their device.

    Args:
        recipe: What the draws leave open.
        image_size: Height and width of a view, in pixels.
        cache: The pictures.
    """

    def __init__(self, recipe: ViewRecipe, image_size: int, cache: Cache):
        self._pictures = cache.pictures
        self._crops = DeviceCrops(recipe, image_size)
        self._colour = DeviceColour(recipe, image_size, cache.pictures.device)

    def __call__(self, places: Tensor, draws: Tensor) -> Tensor:
        """Make the views of a batch.

        Args:
            places: Of the pictures in the cache, (batch,), int64, on the CPU.
            draws: Rows of `draws.py`, (batch, 2, ROW_LENGTH), on the CPU.

        Returns:
            (batch, 2, image_size, image_size, 3), uint8.
        """
        device = self._pictures.device
        pictures = self._pictures[send(places, device)]
        return self._colour(self._crops(pictures, send(draws, device)), draws)


def fill_cache(
    source: Source,
    device: torch.device,
    *,
    num_workers: int = 0,
    world_size: int = 1,
    label_column: str | None = None,
    show_progress: bool = False,
) -> Cache:
    """Decode a split and put all of it on the device: what part of it a process sees changes from epoch to epoch.

    Args:
        source: The data set; all its pictures must be of one size.
        device: Where the pictures are kept.
        num_workers: Worker processes that decode; 0: this process does it.
        world_size: Number of processes, which share the CPU's memory.
        label_column: Labels to keep; None: none.
        show_progress: Show a progress bar.

    Returns:
        The pictures and their records.

    Raises:
        UserError: If the number of images is unknown or wrong, sizes differ, no image can be used, or the pictures do
            not fit into the device's free memory.
    """
    if source.num_images is None:
        raise UserError(
            f"`cache` uint8 must know the number of images, which `{source.name}` does not say. Give them as a folder "
            "or as parquet files, or set `cache` to none."
        )
    pictures, reasons, num_read = None, {}, 0
    shard_sizes = [0] * source.records.num_shards
    columns: dict[str, list[int | None]] = {name: [] for name in _kept_columns(source, label_column)}
    with tqdm(total=source.num_images, unit="img", desc="cache", disable=not show_progress) as bar:
        for part in make_loader(_Decoder(source.access.timeout), _undecoded(source, list(columns)), num_workers):
            if num_read + part.num_records > source.num_images:
                raise UserError(
                    f"`cache` uint8 must know the number of images, but `{source.name}` says that it has "
                    f"{source.num_images} and has more. Set `cache` to none."
                )
            for size in part.sizes:
                if pictures is None:
                    pictures = _room_for(source, size, device, world_size)
                _check_size(source, tuple(pictures.shape[1:3]), size)
            if pictures is not None and part.pictures is not None:
                pictures[num_read + part.offsets.to(device)] = part.pictures.to(device)
            reasons |= {num_read + offset: reason for offset, reason in part.skipped.items()}
            for name, values in part.columns.items():
                columns[name] += values
            shard_sizes[part.shard] += part.num_records
            num_read += part.num_records
            bar.update(part.num_records)
    if pictures is None:
        raise UserError(
            f"Split `{source.split}` of `{source.name}` holds no usable image: "
            f"{', '.join(sorted(set(reasons.values())))}."
        )
    return Cache(_source_of_places(source, shard_sizes, columns), pictures, reasons)


def _kept_columns(source: Source, label_column: str | None) -> list[str]:
    kept = [INDEX_COLUMN] if source.has_indices else []
    return kept if label_column is None else [*kept, label_column]


@dataclass
class _Records:
    """Consecutive records of one shard, and what a worker made of them.

    `offsets` are the records with a picture and `skipped` those without; there are no pictures if `sizes` differ.
    """

    shard: int
    images: list[Any]
    columns: dict[str, list[int | None]]
    num_records: int
    offsets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    pictures: Tensor | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)


class _Decoder(Dataset):
    """Decodes records; runs in the workers."""

    def __init__(self, timeout: float):
        self.timeout = timeout

    def __getitem__(self, records: _Records) -> _Records:
        decoded = {}
        for offset, record_image in enumerate(records.images):
            try:
                decoded[offset] = decode(record_image, self.timeout)
            except SkippedImageError as error:
                records.skipped[offset] = error.reason
        records.images = []  # the bytes need not travel back
        records.offsets = torch.tensor(list(decoded), dtype=torch.int64)
        records.sizes = list(dict.fromkeys(picture.shape[:2] for picture in decoded.values()))
        if len(records.sizes) == 1:
            records.pictures = torch.from_numpy(np.stack(list(decoded.values())))
        return records


def _undecoded(source: Source, columns: list[str]) -> Iterator[_Records]:
    records = source.records.select_columns([source.image_column, *columns])
    for number, shard in enumerate(_shards(records)):
        for rows, _ in patient_tables(source, shard, _RECORDS_AT_ONCE):
            images = rows[source.image_column].to_pylist()
            yield _Records(number, images, {name: rows[name].to_pylist() for name in columns}, len(images))


def _shards(records: datasets.IterableDataset) -> Iterator[datasets.IterableDataset]:
    """Each shard by itself, in order."""
    # By way of groups, since to take one shard out of many costs a look at all of them.
    num_groups = math.isqrt(records.num_shards)
    for number in range(num_groups):
        group = records.shard(num_groups, number)
        for index in range(group.num_shards):
            yield group.shard(group.num_shards, index)


def _room_for(source: Source, size: tuple[int, int], device: torch.device, world_size: int) -> Tensor:
    assert source.num_images is not None
    needed = source.num_images * size[0] * size[1] * 3
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // world_size
    if needed > _LARGEST_SHARE * free:
        raise UserError(
            f"`cache` uint8 must fit into {_LARGEST_SHARE:.0%} of the free memory of `{device}`, but "
            f"{source.num_images:,} images of {size[0]} x {size[1]} pixels take {needed / 1e9:,.1f} GB of "
            f"{free / 1e9:,.1f}. Set `cache` to none."
        )
    return torch.zeros((source.num_images, *size, 3), dtype=torch.uint8, device=device)


def _check_size(source: Source, size: tuple[int, ...], other: tuple[int, int]) -> None:
    if size != other:
        raise UserError(
            f"`cache` uint8 must have images of one size, but `{source.name}` has some of {size[0]} x {size[1]} and "
            f"some of {other[0]} x {other[1]} pixels (height x width). Resize them beforehand, or set `cache` to none."
        )


def _source_of_places(source: Source, shard_sizes: list[int], columns: dict[str, list[int | None]]) -> Source:
    ends = np.cumsum(shard_sizes).tolist()
    paths = pa.array(map(str, range(ends[-1])), pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], names=["bytes", "path"])
    others = [pa.array(values, pa.int64()) for values in columns.values()]
    table = pa.table([images, *others], names=[source.image_column, *columns])
    shards = [(end - size, end) for end, size in zip(ends, shard_sizes, strict=True)]
    features = datasets.Features({name: datasets.Value("int64") for name in columns})
    info = datasets.DatasetInfo(
        features=datasets.Features({source.image_column: datasets.Image(decode=False), **features})
    )
    if placed_examples(source.records) is not None:
        iterable = PlacedExamples(partial(_read, table), shards)
    else:
        iterable = ArrowExamplesIterable(partial(_read, table), {"places": shards})
    # A place is no path, whatever a record of the data set may name.
    return replace(source, records=datasets.IterableDataset(iterable, info=info), access=Access())


def _read(table: pa.Table, places: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    for start, end in places:
        yield (start, end), table.slice(start, end - start)
