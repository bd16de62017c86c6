"""Damaged parquet files and tars are read, counted or refused in a sentence: nothing hangs, nothing else is raised."""

import gzip
import io
import tarfile
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from mutations import edits, mutated, pictures

from hf_ssl.data.decode.pictures import SkippedImageError, decode
from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError

IMAGES = list(pictures().values())[:8]


def parquet(**options):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": data, "path": None} for data in IMAGES], "label": [0, 1] * 4}
    file = io.BytesIO()
    pq.write_table(pa.table(rows, schema=features.arrow_schema), file, row_group_size=3, **options)
    return file.getvalue()


def tar():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number, data in enumerate(IMAGES):
            for name, part in ((f"{number}.jpg", data), (f"{number}.cls", b"1")):
                about = tarfile.TarInfo(name)
                about.size = len(part)
                archive.addfile(about, io.BytesIO(part))
    return content.getvalue()


FILES = {
    "a.parquet": parquet(),
    "b.parquet": parquet(compression="none", use_dictionary=False, write_page_checksum=True),
    "a.tar": tar(),
    "a.tar.gz": gzip.compress(tar(), mtime=0),
}


def read(path):
    """Number of images and of those skipped by reason."""
    source = open_source(str(path), data_timeout=0.0)
    found = Counter()
    for table, _ in patient_tables(source, source.records, 4):
        for image in table[source.image_column].to_pylist():
            try:
                found["read"] += decode(image).dtype == np.uint8
            except SkippedImageError as error:
                found[error.reason] += 1
    return found


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=edits)
def test_a_damaged_file_is_read_counted_or_refused(name, tmp_path, changes):
    (tmp_path / name).write_bytes(mutated(FILES[name], changes))
    try:
        found = read(tmp_path / name)
    except UserError as error:
        assert name in str(error)
    else:
        assert found.total() > 0


# What damage made at random has found.


@pytest.mark.parametrize(
    "description",
    [b"{", b"\xe2", b'{"info": 3}', b'{"info": {"features": {"image": {"_type": "Imag"}, "label": 3}}}'],
)
def test_a_damaged_description_of_the_columns_costs_only_itself(tmp_path, caplog, description):
    table = pq.read_table(io.BytesIO(FILES["a.parquet"])).replace_schema_metadata({b"huggingface": description})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")["read"] == len(IMAGES)
    assert "a.parquet` is read without its description of the columns" in caplog.text


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("size", [3, 4, 10, 300])
def test_a_tar_of_which_nothing_is_left_is_named(tmp_path, name, size):
    (tmp_path / name).write_bytes(FILES[name][:size])
    with pytest.raises(UserError, match=r"a\.tar.*is damaged, and nothing in it can be read"):
        read(tmp_path / name)


def test_the_head_of_a_gzip_file_that_has_changed_is_no_crash(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(mutated(FILES["a.tar.gz"], [("set", 3, 4, 1)]))
    with pytest.raises(UserError, match="is damaged"):
        read(tmp_path / "a.tar.gz")
