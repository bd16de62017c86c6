"""Parquet shards of one data set that differ from each other."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_ssl.data.decode.pictures import decode
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views
from hf_ssl.errors import UserError

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def _png(number):
    file = io.BytesIO()
    Image.new("L", (8, 8), number).save(file, "PNG")
    return file.getvalue()


def _images(numbers):
    return pa.array([{"bytes": _png(number), "path": None} for number in numbers], IMAGE)


def _write(folder, *shards):
    for number, shard in enumerate(shards):
        pq.write_table(pa.table(shard), folder / f"train-{number}.parquet", row_group_size=3)
    return str(folder)


def _read(source):
    rows = list(source.records)
    assert [row[INDEX_COLUMN] for row in rows] == list(range(len(rows)))
    return [int(decode(row[source.image_column])[0, 0, 0]) for row in rows], [row.get("label") for row in rows]


def _labelled(numbers, type_=None):
    return {"image": _images(numbers), "label": pa.array([number % 3 for number in numbers], type_ or pa.int64())}


@pytest.mark.parametrize("labelled_first", [True, False])
def test_a_shard_without_labels_trains_and_its_labels_are_unknown(tmp_path, labelled_first):
    shards = [_labelled(range(4)), {"image": _images(range(4, 8))}]
    expected = [0, 1, 2, 0, None, None, None, None]
    if not labelled_first:
        shards, expected = [{"image": _images(range(4))}, _labelled(range(4, 8))], [None] * 4 + [1, 2, 0, 1]
    source = open_source(_write(tmp_path, *shards))
    assert _read(source) == (list(range(8)), expected)
    stream = TrainingStream(source, Views("shapes", 8), 8, seed=0, with_labels=True)
    batch = next(iter(stream))
    known = [-1 if label is None else label for label in expected]
    assert batch.labels.tolist() == [known[index] for index in batch.indices.tolist()]
    assert batch.views.dtype == torch.uint8


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_renamed_image_column_is_named_with_its_file_before_anything_is_read(tmp_path, renamed):
    shards = [_labelled(range(4)), _labelled(range(4, 8))]
    shards[renamed]["img"] = shards[renamed].pop("image")
    with pytest.raises(UserError, match=rf"train-{renamed}.parquet` has no column `image`.*`label`, `img`"):
        open_source(_write(tmp_path, *shards))


def test_shards_of_other_order_and_types_are_read(tmp_path):
    plain = _labelled(range(3))
    reordered = dict(reversed(_labelled(range(3, 6), pa.int32()).items()))
    raw = {"image": pa.array([_png(number) for number in range(6, 9)]), "label": pa.array([0, 1, 2], pa.int8())}
    dictionary = {"image": _images(range(9, 12)), "label": pa.array([0, 1, 2]).dictionary_encode()}
    source = open_source(_write(tmp_path, plain, reordered, raw, dictionary))
    assert _read(source) == (list(range(12)), [0, 1, 2] * 4)


def test_raw_bytes_are_read_beside_images_that_were_written_without_the_type_of_a_path(tmp_path):
    untyped = {"image": [{"bytes": _png(number), "path": None} for number in range(3)], "label": [0, 1, 2]}
    raw = {"image": pa.array([_png(number) for number in range(3, 6)]), "label": [0, 1, 2]}
    source = open_source(_write(tmp_path, untyped, raw, _labelled(range(6, 9))))
    assert _read(source) == (list(range(9)), [0, 1, 2] * 3)


def test_labels_that_are_no_numbers_in_one_shard_are_named_with_their_file(tmp_path):
    words = {"image": _images(range(3)), "label": ["cat", "dog", "cow"]}
    source = open_source(_write(tmp_path, _labelled(range(3)), words))
    with pytest.raises(UserError, match=r"Column `label` of `.*train-1.parquet` holds string"):
        list(source.records)
