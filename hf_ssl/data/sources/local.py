"""Folders and files on this machine, read fast where that is possible, else by `datasets`."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.download import DownloadConfig, StreamingDownloadManager
from datasets.packaged_modules import _ALL_METADATA_FILENAMES

from hf_ssl.data.sources.archive import pieces
from hf_ssl.data.sources.files import dataset_records, folder_records, parquet_records, table_records
from hf_ssl.data.sources.identity import digest_of, files_table
from hf_ssl.data.sources.listing import is_image
from hf_ssl.data.sources.objects import undecoded
from hf_ssl.data.sources.opened import Opened, attempt, no_images, no_split
from hf_ssl.data.sources.readings import check_reading, classes_of, in_no_split, left_out_of, understood
from hf_ssl.data.sources.resolve import Choice, Resolved, resolve_file, resolve_folder
from hf_ssl.data.sources.tar_bytes import is_tar
from hf_ssl.data.sources.tars import tar_layout, tar_records
from hf_ssl.data.sources.texts import distinct_texts
from hf_ssl.errors import UserError


def open_local(name: str, path: Path, split: str, choice: Choice) -> Opened:
    """Open one split of a folder or file.

    Raises:
        UserError: If it holds no images, can be read in two ways, or lacks the split.
    """
    if choice.revision is not None:
        raise UserError(
            f"`dataset_revision` is for data sets on the Hub, but `{name}` is on this machine. Leave it out."
        )
    resolved = resolve_folder(name, path, choice) if path.is_dir() else resolve_file(name, path, choice)
    images, classes = resolved, None
    if resolved.module == "imagefolder" and not any(map(_is_metadata, _all_files(resolved))):
        images = attempt(name, lambda: _with_members(resolved))
        classes = classes_of(images) if images is not None else None
    check_reading(name, images or resolved, classes)
    if split not in resolved.splits:
        raise no_split(name, split, list(resolved.splits), in_no_split(resolved), of_files=True)
    files = resolved.splits[split]
    table = files_table(files, [resolved.size(file) for file in files])
    about: dict[str, Any] = {
        "identity": [digest_of(table), resolved.module, choice.data_dir, choice.data_files, choice.drop_labels],
        "left_out": left_out_of(resolved),
        "features": resolved.features,
        "folder": resolved.listing.folder,
        "understood": understood(name, images or resolved, classes),
        "files": table,
    }
    if images is not None and classes is not None:
        own = images.splits[split]
        folder = path if path.is_dir() else path.parent
        if os.path.realpath(folder) != resolved.listing.folder:  # a folder in it
            folder = Path(resolved.listing.folder)
        return Opened(folder_records(folder, own, classes.of.get(split), classes.names), len(own), **about)
    archived = any(file.endswith(".zip") for file in _all_files(resolved))
    if resolved.module == "webdataset" or archived:
        return _tars(name, resolved, split, about)
    if resolved.module == "imagefolder":
        return attempt(name, lambda: _described(resolved, split, about))
    if resolved.module == "parquet":
        return _parquet(resolved, split, about)
    return attempt(name, lambda: _prepared(resolved, split, about))


def open_saved(name: str, path: Path, split: str) -> Opened:
    """Open one split of a folder that `save_to_disk` wrote.

    Raises:
        UserError: If it cannot be read or lacks the split.
    """
    found = attempt(name, lambda: datasets.load_from_disk(str(path)))
    splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}
    if split not in splits:
        raise no_split(name, split, list(map(str, splits)))
    counts = ", ".join(f"{one} ({rows.num_rows:,} images)" for one, rows in splits.items())
    line = f"`{name}` is read as `save_to_disk` wrote it: split{'s' * (len(splits) > 1)} {counts}."
    # Its own fingerprint is another after each `save_to_disk`: names with sizes tell the content.
    names = sorted(str(one.relative_to(path)) for one in path.rglob("*.arrow"))
    table = files_table(names, [(path / one).stat().st_size for one in names])
    return _of_dataset(splits, split, {"identity": digest_of(table), "understood": line, "files": table})


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote a folder."""
    single = (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return single or (path / "dataset_dict.json").is_file()


def _all_files(resolved: Resolved) -> Iterator[str]:
    return (file for files in resolved.splits.values() for file in files)


def _is_metadata(file: str) -> bool:
    return os.path.basename(file) in _ALL_METADATA_FILENAMES


def _with_members(resolved: Resolved) -> Resolved | None:
    """The images in archives beside those in folders, as `archive.zip//member`; None if an archive has metadata."""
    splits = {}
    for split, files in resolved.splits.items():
        splits[split] = []
        for file in files:
            if not file.endswith(".zip"):
                splits[split].append(file)
                continue
            with zipfile.ZipFile(resolved.path(file)) as archive:
                members = [one for one in archive.namelist() if not _is_hidden(one)]
            if any(map(_is_metadata, members)):
                return None
            splits[split] += [f"{file}//{member}" for member in members if is_image(member)]
    return replace(resolved, splits=splits)


def _is_hidden(member: str) -> bool:
    return any(part.startswith((".", "__")) for part in member.split("/"))


def _described(resolved: Resolved, split: str, about: dict[str, Any]) -> Opened:
    """Images with a metadata file: their rows as `datasets` makes them, and the images are read where they lie."""
    builder = resolved.builder()
    generators = builder._split_generators(_Local(download_config=DownloadConfig()))  # pyright: ignore[reportAttributeAccessIssue]
    assert builder.info.features is not None
    features = {
        name: kind
        for name, kind in builder.info.features.items()
        if isinstance(kind, datasets.Image | datasets.Value | datasets.ClassLabel)
    }
    tables = {}
    for generator in generators:
        rows = [row for _, row in builder._generate_examples(**generator.gen_kwargs)]  # pyright: ignore[reportAttributeAccessIssue]
        columns = {name: _column([row.get(name) for row in rows], kind) for name, kind in features.items()}
        tables[str(generator.name)] = pa.table(columns)
    stored = {
        name: datasets.Image(decode=False) if isinstance(kind, datasets.Image) else kind
        for name, kind in features.items()
    }
    images = sum(is_image(file) for file in resolved.splits[split])
    table = tables[split]
    if table.num_rows < images:
        about["understood"] += f" Split {split} has {table.num_rows:,} rows of metadata for {images:,} images."
    if not table.num_rows:
        return Opened(datasets.IterableDataset.from_generator(iter), 0, **about)

    def distinct(column: str) -> list[str]:
        return distinct_texts(one[column] for one in tables.values())

    return Opened(table_records(table, datasets.Features(stored)), table.num_rows, distinct=distinct, **about)


def _column(values: list[Any], kind: Any) -> pa.Array:
    if isinstance(kind, datasets.Image):
        paths = [None if value is None else {"bytes": None, "path": value} for value in values]
        return pa.array(paths, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    if isinstance(kind, datasets.ClassLabel):
        values = [kind.str2int(value) if isinstance(value, str) else value for value in values]
        return pa.array(values, pa.int64())
    return pa.array(values, kind.pa_type, from_pandas=True)


class _Local(StreamingDownloadManager):
    """Files that lie here are not downloaded."""

    def download(self, url_or_urls: Any) -> Any:
        return url_or_urls


def _parquet(resolved: Resolved, split: str, about: dict[str, Any]) -> Opened:
    files = [resolved.path(file) for file in resolved.splits[split]]
    records, num_images = parquet_records(files)

    def distinct(column: str) -> list[str]:
        found: set[str] = set()
        for file in _all_files(resolved):
            with pq.ParquetFile(resolved.path(file)) as parquet:
                if column in parquet.schema_arrow.names:
                    for batch in parquet.iter_batches(65536, columns=[column], use_threads=False):
                        found.update(distinct_texts([batch[column]]))
        return sorted(found)

    return Opened(
        records,
        num_images,
        select=lambda needed, labels: parquet_records(files, [*needed, *labels], optional=labels)[0],
        distinct=distinct,
        **about,
    )


def _tars(name: str, resolved: Resolved, split: str, about: dict[str, Any]) -> Opened:
    files = [resolved.path(file) for file in resolved.splits[split]]
    if all(map(is_tar, files)):
        if all(map(_is_empty_tar, files)):
            raise no_images(name, split)
        layout = attempt(name, lambda: tar_layout(files))
        if layout is not None:
            return Opened(
                tar_records(files, layout),
                None,
                select=lambda needed, labels: tar_records(files, layout, needed[0], [*needed, *labels]),
                **about,
            )
    stream: Any = attempt(name, lambda: resolved.builder().as_streaming_dataset(split=split))
    return Opened(undecoded(stream), None, **about)


def _is_empty_tar(path: str) -> bool:
    try:
        return next(pieces(path), None) is None
    except OSError:
        return False  # opening it as a data set says why


def _prepared(resolved: Resolved, split: str, about: dict[str, Any]) -> Opened:
    """Tables of texts, which `datasets` turns into Arrow files in its cache, as `load_dataset` does."""
    builder = resolved.builder()
    builder.download_and_prepare()
    return _of_dataset({one: builder.as_dataset(split=one) for one in resolved.splits}, split, about)


def _of_dataset(splits: Mapping[Any, Any], split: str, about: dict[str, Any]) -> Opened:
    one: datasets.Dataset = splits[split]

    def distinct(column: str) -> list[str]:
        return distinct_texts(part.data.column(column) for part in splits.values())

    if not one.num_rows:
        return Opened(datasets.IterableDataset.from_generator(iter), 0, **about)
    return Opened(
        dataset_records(one),
        one.num_rows,
        select=lambda needed, labels: dataset_records(one.select_columns([*needed, *labels])),
        distinct=distinct,
        **about,
    )
