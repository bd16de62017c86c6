"""Webdataset tars: the records that `datasets` makes of them, and a count of what damage has lost.

`datasets` ends without a word where an archive was cut, and stops where it holds garbage. Here such a place is logged
with the number of bytes that could not be read, and records with the image `DAMAGED_ARCHIVE` stand for those lost.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.builder import Key
from datasets.features.features import cast_to_python_objects
from datasets.filesystems import EXTENSION_TO_COMPRESSION_FS_FILE_CLS
from datasets.iterable_dataset import ExamplesIterable
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from hf_ssl.data.decode.image_bytes import DAMAGED_ARCHIVE
from hf_ssl.data.sources.archive import BLOCK, Damage, Member, pieces
from hf_ssl.data.sources.tar_bytes import can_unpack
from hf_ssl.data.sources.unchanged import Stamp, check_unchanged, stamp_of

_logger = logging.getLogger(__name__)

_SAMPLED_NAMES, _SAMPLED_RECORDS = 256, 5  # that show how members are named, and what types they have

_damaged: dict[str, set[int]] = {}  # archive -> places where it is damaged, as far as this process has read


@dataclass(frozen=True)
class TarLayout:
    """How the members of the tars of a data set make records.

    Args:
        features: Fields and their types.
        by_last_dot: Whether a field is what follows the last dot of a name (`img.v1.0000.png`) instead of the first.
    """

    features: datasets.Features
    by_last_dot: bool


def damaged_archives(dataset: str) -> list[str]:
    """Archives of a data set, a tar or a folder, in which this process has met damage."""
    place = Path(dataset).expanduser().resolve()
    return sorted(path for path in _damaged if Path(path).resolve().is_relative_to(place))


def tar_layout(files: list[str]) -> TarLayout | None:
    """Find out from the first archive with members how the members make records.

    Returns:
        The layout; None where `datasets` has to read, because there is no member, or members are compressed.

    Raises:
        OSError: If an archive cannot be read, or all are so damaged that nothing in them can.
    """
    damaged = None
    for path in files:
        if not can_unpack(path):
            return None
        found = list(islice(pieces(path), _SAMPLED_NAMES))
        members = [piece.name for piece in found if isinstance(piece, Member)]
        names = [name for name in members if base_plus_ext(name)[0] is not None]
        if not names:
            damaged = damaged or (path if any(isinstance(piece, Damage) for piece in found) else None)
            continue
        if any("." + name.split(".")[-1].lower() in EXTENSION_TO_COMPRESSION_FS_FILE_CLS for name in names):
            return None
        by_last_dot = _by_last_dot(names)
        return TarLayout(_features_of(path, by_last_dot), by_last_dot)
    if damaged is not None:
        raise OSError(f"`{damaged}` is damaged, and nothing in it can be read")
    return None


def tar_records(
    files: list[str], layout: TarLayout, image: str | None = None, columns: list[str] | None = None
) -> datasets.IterableDataset:
    """Stream tars; each is a shard.

    Args:
        files: Tars of one data set, in order: paths and addresses.
        layout: From `tar_layout`.
        image: The column of the images. A record that lacks it gives another image that it has: an archive may hold
            `.jpg` beside `.png`. None: no such column.
        columns: The columns to read; None: all.

    Returns:
        The records.
    """
    features = layout.features
    if columns is not None:
        features = datasets.Features({name: features[name] for name in columns})
    stamps = {path: stamp_of(path) for path in files if "://" not in path}
    read = partial(_examples, features, layout.by_last_dot, image, stamps)
    return datasets.IterableDataset(
        ExamplesIterable(read, {"tars": files}), info=datasets.DatasetInfo(features=features)
    )


def _by_last_dot(names: list[str]) -> bool:
    """Whether dots belong to the names of the records, rather than to those of their fields (`0001.input.jpg`)."""
    inner: dict[str, set[str]] = {}  # record by the first dot -> what lies between its first and last dots
    for name in names:
        key, field = base_plus_ext(name)
        inner.setdefault(str(key), set()).add(str(field).rpartition(".")[0])
    parts = set().union(*inner.values())
    if all(len(own) == 1 for own in inner.values()):
        return len(parts) > 1
    numbered = all(re.search(r"\d$", part) for part in parts if part)
    return len(parts) > len(inner) and (len(parts) > 8 or numbered)


def _features_of(path: str, by_last_dot: bool) -> datasets.Features:
    """Types of the fields, from the first records, as `datasets` finds them."""
    examples = []
    for raw in islice((raw for raw in _grouped(path, by_last_dot) if isinstance(raw, dict)), _SAMPLED_RECORDS):
        fields = {name: _decoded(name, read) for name, read in raw.items() if not name.startswith("__")}
        examples.append({**fields, "__key__": raw["__key__"], "__url__": raw["__url__"]})
    for name in {name for example in examples for name in example}:
        values = [example[name] for example in examples if name in example]
        if any(isinstance(value, str) for value in values):  # a class may be `7` here and `cat` there
            for example in examples:
                if name in example:
                    example[name] = str(example[name])
    tables = [pa.Table.from_pylist([cast_to_python_objects(one, only_1d_for_numpy=True)]) for one in examples]
    features = datasets.Features.from_arrow_schema(pa.concat_tables(tables, promote_options="default").schema)
    for name in features:
        extension = name.rsplit(".", 1)[-1].lower()
        for extensions, kind in (
            (WebDataset.IMAGE_EXTENSIONS, datasets.Image),
            (WebDataset.AUDIO_EXTENSIONS, datasets.Audio),
            (WebDataset.VIDEO_EXTENSIONS, datasets.Video),
        ):
            if extension in extensions:
                features[name] = kind()
    return features


def _decoded(field: str, data: bytes) -> Any:
    """What `datasets` makes of a field; none of its decoders loads a pickle, which could run code."""
    decode = WebDataset.DECODERS.get(field.split(".")[-1].lower())
    if decode is None:
        return data
    try:
        value = decode(data)
        # The arrays of an npz are read only when they are asked for.
        return dict(value) if isinstance(value, np.lib.npyio.NpzFile) else value
    except Exception:  # noqa: BLE001 - whatever a broken field makes of numpy, json or pickle; it is then text or null
        return data.decode(errors="replace").strip() if decode is int else None


def _examples(
    features: datasets.Features, by_last_dot: bool, image: str | None, stamps: dict[str, Stamp], tars: list[str]
) -> Iterator[tuple[Key, dict[str, Any]]]:
    for shard, path in enumerate(tars):
        for number, raw in enumerate(_grouped(path, by_last_dot, features, image)):
            if path in stamps:
                check_unchanged(path, stamps[path])
            if raw is None:
                lost = {"bytes": None, "path": DAMAGED_ARCHIVE}
                yield Key(shard, number), {name: lost if name == image else None for name in features}
            else:
                yield Key(shard, number), {name: _value(name, features[name], raw) for name in features}


def _value(name: str, feature: Any, raw: dict[str, Any]) -> Any:
    value = raw.get(name)
    if value is None or name.startswith("__"):
        return value
    if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
        name, value = value if isinstance(value, tuple) else (name, value)
        return {"path": f"{raw['__key__']}.{name}", "bytes": value}
    value = _decoded(name, value)
    if getattr(feature, "dtype", None) == "string":
        return value if value is None else str(value)
    return None if isinstance(value, str) else value


def _is_image(field: str) -> bool:
    return field.lower() in WebDataset.IMAGE_EXTENSIONS


def _grouped(
    path: str, by_last_dot: bool, wanted: datasets.Features | None = None, image: str | None = None
) -> Iterator[dict[str, Any] | None]:
    """Records of one tar with the bytes of the wanted fields; None for each that damage has lost, as far as known."""
    record: dict[str, Any] = {}
    num_records, num_bytes, after_damage = 0, 0, False
    for piece in pieces(path):
        if isinstance(piece, Damage):
            if record and _with_image(record, image):
                yield record
            record, after_damage = {}, True
            _say(path, piece)
            # As many as the records so far suggest; where nothing is left to read, one stands for them.
            lost = round(piece.unread * num_records / num_bytes) if num_bytes else 1
            yield from [None] * max(1, lost)
            continue
        key, field = base_plus_ext(piece.name)
        if key is None or field is None:
            continue
        if by_last_dot:
            inner, _, field = field.rpartition(".")
            key = f"{key}.{inner}" if inner else key
        if record and (record["__key__"] != key or field in record):
            if not after_damage or _with_image(record, image):  # else counted with the damage
                yield _with_image(record, image) or record
            record, after_damage = {}, False
        if not record:
            num_records += 1
            record = {"__key__": key, "__url__": path}
        num_bytes += piece.size + 2 * BLOCK
        if wanted is None or field in wanted or (image is not None and _is_image(field)):
            record[field] = piece.read()
        else:
            record[field] = None
    if record and (not after_damage or _with_image(record, image)):
        yield _with_image(record, image) or record


def _with_image(record: dict[str, Any], image: str | None) -> dict[str, Any] | None:
    """The record with its image, or another image that it has, in the column of the images; None if it has none."""
    if image is None or record.get(image) is not None:
        return record
    other = next((field for field, data in record.items() if _is_image(field) and data is not None), None)
    return None if other is None else {**record, image: (other, record[other])}


def _say(path: str, damage: Damage) -> None:
    places = _damaged.setdefault(path, set())
    if damage.position in places:  # said in an earlier epoch
        return
    places.add(damage.position)
    if damage.unread:
        _logger.warning(
            "`%s` is damaged: %d bytes from byte %d on cannot be read. They count as `damaged archive`.",
            path,
            damage.unread,
            damage.position,
        )
    else:
        _logger.warning(
            "`%s` ends at byte %d without the end mark of an archive: it was probably cut, and images are missing. "
            "This counts as one `damaged archive`.",
            path,
            damage.position,
        )
