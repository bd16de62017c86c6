"""Which file of a data set has changed since a run began."""

import gzip
import json

import pytest

from hf_ssl.data.sources.identity import difference_from, first_difference, write_listing
from hf_ssl.data.sources.open import open_source
from hf_ssl.errors import UserError


def _write(folder, **sizes):
    """Files of so many bytes; they are listed by name, and decoding them is not needed."""
    for name, size in sizes.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ([("a", 1), ("b", 2)], None),
        ([("b", 2), ("a", 1)], None),
        ([("a", 1)], "`b` is gone"),
        ([("a", 1), ("aa", 5), ("b", 2)], "`aa` is new"),
        ([("a", 1), ("b", 3000)], "`b` has 3,000 bytes, and had 2"),
        ([("a", 9), ("c", 2)], "`a` has 9 bytes, and had 1"),
    ],
)
def test_the_first_difference_is_named(new, expected):
    assert first_difference([("a", 1), ("b", 2)], new) == expected


def test_a_run_knows_the_file_that_was_swapped(tmp_path):
    _write(tmp_path / "set", cat__1=10, cat__2=20, dog__1=30)
    source, listing = open_source(str(tmp_path / "set")), tmp_path / "data_files.json.gz"
    write_listing(source, listing)
    assert json.loads(gzip.decompress(listing.read_bytes()))["files"] == [
        ["cat/1.png", 10],
        ["cat/2.png", 20],
        ["dog/1.png", 30],
    ]
    assert difference_from(listing, open_source(str(tmp_path / "set"))) is None
    _write(tmp_path / "set", cat__2=21)
    other = open_source(str(tmp_path / "set"))
    assert other.fingerprint != source.fingerprint
    assert difference_from(listing, other) == "`cat/2.png` has 21 bytes, and had 20"
    _write(tmp_path / "set", cat__2=20)
    assert open_source(str(tmp_path / "set")).fingerprint == source.fingerprint
    (tmp_path / "set" / "cat" / "1.png").rename(tmp_path / "set" / "cat" / "0.png")
    assert difference_from(listing, open_source(str(tmp_path / "set"))) == "`cat/0.png` is new"
    assert difference_from(tmp_path / "no_such.gz", source) is None
    listing.write_bytes(b"no listing")
    with pytest.raises(UserError, match="must list the files of the data set, but it cannot be read"):
        difference_from(listing, source)


def test_what_chooses_images_and_labels_is_part_of_the_identity(tmp_path):
    _write(tmp_path, cat__1=10, cat__2=20, dog__1=30)
    place = str(tmp_path)
    changes = [{}, {"drop_labels": True}, {"data_files": "**"}, {"data_files": "cat/**"}, {"data_dir": "cat"}]
    prints = [open_source(place, **change).fingerprint for change in changes]
    assert len(set(prints)) == len(changes)
    assert write_listing(open_source("digits"), tmp_path / "none.gz") is None
    assert not (tmp_path / "none.gz").exists() and difference_from(tmp_path / "none.gz", open_source("digits")) is None
