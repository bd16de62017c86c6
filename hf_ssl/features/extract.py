"""Features of a data set, shard by shard, over processes that may be killed and change in number."""

from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count, groupby, islice
from pathlib import Path

from tqdm.auto import tqdm

from hf_ssl.data.sources.open import Source
from hf_ssl.distributed import rank, world_size
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.evaluation.features import features_of_ranges
from hf_ssl.features.folder import (
    ExtractionSettings,
    columns_of,
    has_paths,
    read_record,
    shard_path,
    write_shard,
)
from hf_ssl.features.paths import path_in_dataset


def rows_to_cover(source: Source, max_images: int | None) -> int | None:
    """Rows that an extraction covers; None where only reading the data set to its end tells.

    The number of rows that a data set on the Hub states of itself is not relied upon.
    """
    known = source.num_images if source.has_indices else None
    return known if max_images is None or known is None else min(known, max_images)


def own_shards(
    source: Source, settings: ExtractionSettings, complete: Collection[int], rank: int, world_size: int
) -> Iterator[int]:
    """Numbers of the missing shards that a process computes, ascending; together the processes compute all.

    Where the data set can be entered anywhere, each process gets neighbouring shards. A stream is read by all from its
    beginning, so there they take turns. Its end is unknown, and the numbers go on without end.

    Args:
        source: The data set.
        settings: Settings of the extraction.
        complete: Numbers of the shards that are there, the same on every process.
        rank: Number of this process, in [0, world_size).
        world_size: Number of processes.
    """
    num_rows = rows_to_cover(source, settings.max_images)
    bound = num_rows if num_rows is not None else settings.max_images
    numbers = count() if bound is None else range(-(-bound // settings.rows_per_shard))
    missing = (number for number in numbers if number not in complete)
    if num_rows is None:
        return islice(missing, rank, None, world_size)
    listed = list(missing)
    return iter(listed[rank * len(listed) // world_size : (rank + 1) * len(listed) // world_size])


def extract_shards(
    folder: Path,
    encoder: Encoder,
    source: Source,
    settings: ExtractionSettings,
    complete: Collection[int],
    batch_size: int = 256,
    num_workers: int = 0,
    *,
    description: str | None = None,
) -> None:
    """Compute and write the missing shards of this process, in the memory of three shards.

    A shard is the same whichever process writes it, in whichever run, if `batch_size` is the same; another one may
    change the last bits of the features.

    Args:
        folder: Where `begin_split` was called.
        encoder: The encoder.
        source: The split.
        settings: Settings of the extraction.
        complete: Numbers of the shards that are there, the same on every process.
        batch_size: Images a batch, at least 1.
        num_workers: Worker processes that decode images, at least 0.
        description: Text of the progress bar of the main process; None for no bar.

    Raises:
        UserError: If a label column has the name of another column, a feature is too large for float16, or as
            `features_of_ranges` does.
    """
    with_path = has_paths(read_record(folder) or {})
    columns = columns_of(source.labels, encoder.dim, settings.dtype, with_path=with_path)
    place = Path(source.name).expanduser()
    root = place if place.is_dir() else None
    size = settings.rows_per_shard
    limit = settings.max_images
    numbers = own_shards(source, settings, complete, rank(), world_size())
    ranges = ((n * size, (n + 1) * size if limit is None else min((n + 1) * size, limit)) for n in numbers)
    batches = features_of_ranges(encoder, source, ranges, batch_size, num_workers, bf16=settings.bf16)
    written: Future[None] | None = None
    bar = _progress_bar(source, settings, complete, description)
    with bar, closing(batches), ThreadPoolExecutor(1) as writer:
        for number, parts in groupby(batches, key=lambda part: part.first // size):
            rows = []
            for part in parts:
                part.paths = [path_in_dataset(path, root) for path in part.paths]
                rows.append(part)
                bar.update(part.num_rows)
            if written is not None:
                written.result()
            written = writer.submit(write_shard, shard_path(folder, source.split, number), rows, columns)
        if written is not None:
            written.result()


def _progress_bar(
    source: Source, settings: ExtractionSettings, complete: Collection[int], description: str | None
) -> tqdm:
    """A bar of the images of this process, hidden without a description and on all processes but the first."""
    stated = [number for number in (source.num_images, settings.max_images) if number is not None]
    total = None
    if stated:
        size = settings.rows_per_shard
        missing = min(stated) - sum(min(size, min(stated) - number * size) for number in complete)
        total = max(0, missing) // world_size()
    return tqdm(total=total, desc=description, unit="img", disable=description is None or rank() != 0)
