"""Rows by number: what is read is what lies there, wherever it begins, and nothing far from it is touched."""

import io
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_ssl.data.order import rows as rows_module
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.sources.files import _numbered_records
from hf_ssl.data.sources.open import Source, open_source

NUMBER = 57


def png(number):
    file = io.BytesIO()
    Image.new("L", (3, 2), number).save(file, "PNG")
    return file.getvalue()


def parquet(folder):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    with pq.ParquetWriter(folder / "rows.parquet", features.arrow_schema) as writer:
        for start in range(0, NUMBER, 8):
            numbers = range(start, min(start + 8, NUMBER))
            images = [{"bytes": png(n), "path": None} for n in numbers]
            table = pa.table({"image": images, "label": [n % 2 for n in numbers]}, schema=features.arrow_schema)
            writer.write_table(table)
            writer.write_table(table.slice(0, 0))  # a row group without rows
    return str(folder / "rows.parquet")


def tar(folder):
    with tarfile.open(folder / "rows.tar", "w") as archive:
        for number in range(NUMBER):
            for suffix, data in (("png", png(number)), ("cls", str(number % 2).encode())):
                about = tarfile.TarInfo(f"{number:04d}.{suffix}")
                about.size = len(data)
                archive.addfile(about, io.BytesIO(data))
    return str(folder / "rows.tar")


@pytest.fixture(scope="module", params=[parquet, tar])
def source(request, tmp_path_factory):
    return open_source(request.param(tmp_path_factory.mktemp("rows")))


def numbers_of(source, table):
    return [
        int(np.asarray(Image.open(io.BytesIO(image["bytes"])))[0, 0])
        for image in table[source.image_column].to_pylist()
    ]


@pytest.mark.parametrize("rows_per_piece", [1, 10, 1000])
def test_ranges_are_read_wherever_they_begin(source, monkeypatch, rows_per_piece):
    monkeypatch.setattr(rows_module, "_ROWS_PER_PIECE", rows_per_piece)
    reader = RowReader(source)
    for first, stop in [(0, 1), (1, 9), (9, 10), (20, 43), (43, 44), (56, 70), (70, 80)]:
        table = reader.read(first, stop)
        wanted = list(range(first, min(stop, NUMBER)))
        assert numbers_of(source, table) == wanted
        (label,) = source.labels
        assert table[label].to_pylist() == [n % 2 for n in wanted]
    with pytest.raises(ValueError, match="read forwards, but row 3 comes before row 57"):
        reader.read(3, 4)


def test_images_come_by_their_rows_in_any_order(source):
    images = RowReader(source).images([50, 3, 50, 17])
    assert {row: image["bytes"] for row, image in images.items()} == {row: png(row) for row in (50, 3, 17)}


def test_what_lies_far_away_is_not_read():
    read = []

    def shards(places):
        for start, stop in places:
            read.append(start)
            images = [{"bytes": b"x", "path": None}] * (stop - start)
            yield start, pa.table({"image": images, "__index__": list(range(start, stop))})

    ranges = [(start, start + 100) for start in range(0, 1_000_000, 100)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    records = _numbered_records(shards, ranges, features)
    table = RowReader(Source("numbers", "train", records, "image", {}, 1_000_000, "f")).read(700_123, 700_125)
    assert table.num_rows == 2
    assert len(set(read)) < 40
