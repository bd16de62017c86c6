"""Nearest images by the cosine of their features: over the shards of a feature folder, or by a faiss index of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_ssl.answers import ForeignAnswerError, hub_answers
from hf_ssl.errors import UserError, first_line
from hf_ssl.evaluation.encoders import Encoder
from hf_ssl.evaluation.features import device_of
from hf_ssl.evaluation.finite import check_finite
from hf_ssl.features.folder import RECORD, has_paths, is_complete, read_record, shard_path, write_record
from hf_ssl.writing import replacing

_TRAINING_ROWS = 262_144  # features that an index learns its cells from at the most
_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class SavedFeatures:
    """The features of one complete split, on this machine or on the Hub.

    Args:
        name: Folder or repo, as the user typed it.
        split: The split.
        record: What `features.json` says.
        fetch: Local path of a file, by its name in the folder.
    """

    name: str
    split: str
    record: dict[str, Any]
    fetch: Callable[[str], Path]

    @property
    def rows_of_shards(self) -> list[int]:
        """Number of features in each shard."""
        return self.record["splits"][self.split]["shards"]

    @property
    def has_index(self) -> bool:
        """Whether there is a faiss index beside the shards."""
        return "index" in self.record["splits"][self.split]

    def shard(self, number: int, columns: list[str]) -> pa.Table:
        """Some of the columns of one shard."""
        path = self.fetch(shard_path(Path(), self.split, number).as_posix())
        return pq.read_table(path, columns=columns, use_threads=False)


@dataclass(frozen=True)
class Neighbours:
    """Nearest images of some queries, the nearest first.

    Args:
        similarities: Cosine, (queries, k), float32, in [-1, 1].
        row_ids: Row in the split, (queries, k), int64.
        labels: Every label column, (queries, k), int64.
        paths: File of each image in its data set, (queries, k), of text; None where it is unknown.
    """

    similarities: NDArray[np.float32]
    row_ids: NDArray[np.int64]
    labels: dict[str, NDArray[np.int64]]
    paths: NDArray[np.object_]


def open_features(folder_or_repo: str, split: str | None = None, revision: str | None = None) -> SavedFeatures:
    """Open what `hf-ssl extract` wrote or pushed; of a repo only what is needed is downloaded.

    Args:
        folder_or_repo: A folder, or the id of a data set on the Hub.
        split: The split; None: the only one, or `train`.
        revision: Branch, tag or commit of a repo.

    Raises:
        UserError: If there is no such folder or repo, it holds no features, or the split is missing or incomplete.
    """
    folder = Path(folder_or_repo).expanduser()
    if folder.is_dir():
        record = read_record(folder)
        if record is None:
            raise UserError(
                f"`{folder_or_repo}` holds no features: it has no `{RECORD}`. Give a folder that "
                "`hf-ssl extract` wrote."
            )
        return _of_split(folder_or_repo, split, record, folder.joinpath)
    if folder_or_repo.count("/") != 1 or folder_or_repo.startswith((".", "/", "~")):
        raise UserError(f"There is no folder `{folder_or_repo}`. Give one, or a data set on the Hub as `ORG/NAME`.")

    def fetch(name: str) -> Path:
        try:
            with hub_answers():
                return Path(hf_hub_download(folder_or_repo, name, repo_type="dataset", revision=revision))
        except ForeignAnswerError:
            raise
        except (HfHubHTTPError, EntryNotFoundError, OSError, ValueError) as error:
            raise UserError(
                f"There is no folder `{folder_or_repo}`, and the Hub gave no `{name}` of a data set of that name: "
                f"{first_line(error)}."
            ) from error

    record = read_record(fetch(RECORD).parent)
    assert record is not None
    return _of_split(folder_or_repo, split, record, fetch)


def _of_split(name: str, split: str | None, record: dict[str, Any], fetch: Callable[[str], Path]) -> SavedFeatures:
    splits: list[str] = list(record["splits"])
    split = split or (splits[0] if len(splits) == 1 else "train")
    if split not in splits:
        raise UserError(f"`{name}` has no features of split `{split}`. It has: {', '.join(splits)}.")
    if not is_complete(record, split):
        raise UserError(f"The features of split `{split}` in `{name}` are not complete. Run the extraction again.")
    return SavedFeatures(name, split, record, fetch)


def features_of_pictures(encoder: Encoder, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Features of some pictures, (pictures, dim), by the encoder and its preprocessing.

    Args:
        encoder: The encoder.
        pictures: RGB, each (height, width, 3), as `decode` gives them.

    Raises:
        UserError: If a feature is not finite.
    """
    device = device_of(encoder.module)
    rows = []
    with torch.inference_mode():
        for picture in pictures:
            pixels = encoder.transform(picture)[None].to(device)
            rows.append(encoder.module(pixels)[0].float().cpu())
    check_finite(torch.stack(rows), encoder.name)
    return torch.stack(rows).numpy()


def nearest(
    saved: SavedFeatures, queries: NDArray[np.float32], k: int, *, exact: bool = False, progress: bool = False
) -> Neighbours:
    """The images whose features have the largest cosine with each query.

    By the faiss index if there is one, else, or if `exact`, by comparing with every feature, a shard in memory at a
    time. A `Flat` index gives the same images.

    Args:
        saved: The features.
        queries: (queries, dim), of any length.
        k: Neighbours of each query, at least 1; all if there are fewer.
        exact: Do not use the index.
        progress: Show a progress bar of the shards.

    Raises:
        UserError: If `k` or the width of the queries does not fit, the index is of other features than the shards,
            or faiss is needed and missing.
    """
    dim = saved.record["encoder"]["dim"]
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise UserError(f"`queries` must have shape (queries, {dim}), got {queries.shape}.")
    if k < 1:
        raise UserError(f"`k` must be at least 1, got {k}.")
    k = min(k, sum(saved.rows_of_shards))
    queries = _normalised(queries)
    if saved.has_index and not exact:
        similarities, places = _by_index(saved, queries, k)
    else:
        similarities, places = _by_comparison(saved, queries, k, progress)
    return Neighbours(similarities, *rows_at(saved, places))


def _normalised(features: NDArray[Any]) -> NDArray[np.float32]:
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def embeddings_of(saved: SavedFeatures, number: int) -> NDArray[np.float32]:
    """Normalised features of a shard, (rows, dim)."""
    column = saved.shard(number, ["embedding"])["embedding"].combine_chunks()
    return _normalised(column.flatten().to_numpy().reshape(len(column), saved.record["encoder"]["dim"]))


def _by_comparison(
    saved: SavedFeatures, queries: NDArray[np.float32], k: int, progress: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    best = np.empty((len(queries), 0), np.float32)
    places = np.empty((len(queries), 0), np.int64)
    start = 0
    for number in tqdm(range(len(saved.rows_of_shards)), desc="comparing", unit="shard", disable=not progress):
        for rows in _slices(embeddings_of(saved, number)):
            best = np.concatenate([best, queries @ rows.T], axis=1)
            here = np.broadcast_to(np.arange(start, start + len(rows)), (len(queries), len(rows)))
            places = np.concatenate([places, here], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, places = np.take_along_axis(best, order, axis=1), np.take_along_axis(places, order, axis=1)
            start += len(rows)
    return best, places


def _slices(rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[start : start + _ROWS_AT_ONCE]


def _by_index(
    saved: SavedFeatures, queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return open_index(saved).search(queries, k)


def open_index(saved: SavedFeatures) -> Any:
    """The faiss index of the features.

    Raises:
        UserError: If it is of other features than the shards, or faiss is missing.
    """
    index = _faiss().read_index(str(saved.fetch(_index_name(saved.split))))
    if index.ntotal != sum(saved.rows_of_shards) or index.d != saved.record["encoder"]["dim"]:
        raise UserError(
            f"The index of split `{saved.split}` in `{saved.name}` is of other features than its shards. Build it "
            "again by `hf-ssl extract ... --index faiss`, or add `--exact`."
        )
    return index


def rows_at(
    saved: SavedFeatures, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]], NDArray[np.object_]]:
    """Look up what the shards say about some images; only the shards that are needed are read.

    Args:
        saved: The features.
        places: Places in the sequence of the shards' rows, from 0, of any shape; -1 where there is none.

    Returns:
        Rows in the split and values of every label column, int64, -1 where there is no place; and paths, None where
        they are unknown. All have the shape of `places`.
    """
    ends = np.cumsum(saved.rows_of_shards)
    columns = ["row_id", *saved.record["labels"]]
    found = {name: np.full(places.shape, -1, np.int64) for name in columns}
    paths = np.full(places.shape, None, np.object_)
    with_path = ["path"] if has_paths(saved.record) else []
    shards = np.searchsorted(ends, places, side="right")
    for number in np.unique(shards[places >= 0]):  # an index of cells may find fewer than k and gives -1
        table = saved.shard(int(number), [*columns, *with_path])
        here = (shards == number) & (places >= 0)
        within = places[here] - (ends[number] - saved.rows_of_shards[number])
        for name in columns:
            found[name][here] = table[name].to_numpy()[within]
        if with_path:
            paths[here] = table["path"].take(pa.array(within)).to_pylist()
    return found.pop("row_id"), found, paths


def _index_name(split: str) -> str:
    return f"index/{split}.faiss"


def build_index(folder: Path, split: str, factory: str = "Flat", *, progress: bool = False) -> Path:
    """Write a faiss index of the normalised features of a split, whose inner products are cosines.

    Places in it count the rows of the shards in order, as `datasets` does: `load_faiss_index` takes it. Shards are
    added one by one, so `Flat` needs the memory of the features, and a compressed index less.

    Args:
        folder: A feature folder in which the split is complete.
        split: The split.
        factory: What `faiss.index_factory` takes: `Flat` is exact; `IVF1024,Flat` searches an eighth of 1,024 cells.
        progress: Show a progress bar of the shards.

    Returns:
        The index file.

    Raises:
        UserError: If the split is not complete, faiss is missing, or it cannot make such an index.
    """
    faiss = _faiss()
    saved = open_features(str(folder), split)
    rows = saved.rows_of_shards
    index = new_index(factory, saved.record["encoder"]["dim"])
    if not index.is_trained:
        step = max(1, -(-sum(rows) // _TRAINING_ROWS))
        sample = np.concatenate([embeddings_of(saved, number)[::step] for number in range(len(rows))])
        try:
            index.train(sample)
        except RuntimeError as error:
            raise UserError(f"{_refusal(factory, error)} It has {len(sample):,} features to learn from.") from None
    if (cells := faiss.try_extract_index_ivf(index)) is not None:
        cells.nprobe = max(1, cells.nlist // 8)  # faiss searches a single cell unless told otherwise
    for number in tqdm(range(len(rows)), desc=f"index of {split}", unit="shard", disable=not progress):
        index.add(embeddings_of(saved, number))
    path = folder / _index_name(split)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as partial:
        faiss.write_index(index, str(partial))
    saved.record["splits"][split]["index"] = factory
    write_record(folder, saved.record)
    return path


def new_index(factory: str, dim: int) -> Any:
    """An empty faiss index for inner products of features of a width; raises `ValueError` if there is none such."""
    faiss = _faiss()
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(_refusal(factory, error)) from None


def _refusal(factory: str, error: RuntimeError) -> str:
    reason = first_line(error).rpartition(": ")[2]
    return f"faiss cannot make the index `{factory}`: {reason}."


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("An index needs faiss, which is not installed: pip install 'hf_ssl[search]'") from None
    return faiss
