import io
import itertools
from collections import Counter
from dataclasses import replace

import cv2
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_ssl.data.order.ordered import UNKNOWN_LABEL, batches_of_ranges, sampled_rows
from hf_ssl.data.order.stream import TrainingStream, evaluation_batches
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views
from hf_ssl.errors import UserError

NUMBER = 23
BAD = {4: (b"text", "not an image"), 11: (None, "null"), 12: (b"", "empty")}
LABELS = [n % 3 for n in range(NUMBER)]
LABELS[2], LABELS[3], LABELS[5] = 7, -1, None  # out of range, out of range, missing


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "kind": datasets.ClassLabel(names=["x", "y"]),
        }
    )
    images = []
    for number in range(NUMBER):
        picture = np.full((5, 4, 3), number, np.uint8)
        data = BAD[number][0] if number in BAD else cv2.imencode(".png", picture)[1].tobytes()
        images.append(None if data is None else {"bytes": data, "path": None})
    rows = {"image": images, "label": LABELS, "kind": [n % 2 for n in range(NUMBER)]}
    path = tmp_path_factory.mktemp("ordered") / "rows.parquet"
    pq.write_table(pa.table(rows, schema=features.arrow_schema), path, row_group_size=6)
    return open_source(str(path))


def _transform(picture):
    assert isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2] == 3
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float()


GOOD = [n for n in range(NUMBER) if n not in BAD]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_once_in_order_with_all_labels(source, num_workers):
    batches = evaluation_batches(source, _transform, 5, num_workers=num_workers)
    made = list(batches)
    assert torch.cat([batch.row_ids for batch in made]).tolist() == GOOD
    pixels = torch.cat([batch.pixel_values for batch in made])
    assert pixels.shape == (len(GOOD), 3, 5, 4)
    assert pixels[:, 0, 0, 0].tolist() == GOOD
    known = [UNKNOWN_LABEL if label is None or not 0 <= label < 3 else label for label in LABELS]
    assert torch.cat([batch.labels["label"] for batch in made]).tolist() == [known[n] for n in GOOD]
    assert torch.cat([batch.labels["kind"] for batch in made]).tolist() == [n % 2 for n in GOOD]
    assert made[0].labels.keys() == source.labels.keys()
    assert made[0].labels["label"].dtype == torch.int64
    assert [len(batch.row_ids) for batch in made] == [4, 5, 3, 5, 3]
    assert batches.skipped == Counter({"not an image": 1, "null": 1, "empty": 1})


def test_ranks_share_the_images(source):
    shares = [evaluation_batches(source, _transform, 3, rank=rank, world_size=3) for rank in range(3)]
    rows = [torch.cat([batch.row_ids for batch in share]).tolist() for share in shares]
    assert sorted(sum(rows, [])) == GOOD
    assert all(rows)
    assert sum((share.skipped for share in shares), Counter()).total() == 3


@pytest.mark.parametrize(("batch_size", "num_workers", "world_size"), [(5, 0, 1), (3, 2, 1), (4, 0, 2)])
def test_a_transform_may_know_the_row_whatever_reads_it(source, batch_size, num_workers, world_size):
    def numbered(pictures, rows):
        return torch.tensor([[picture[0, 0, 0], row] for picture, row in zip(pictures, rows, strict=True)])

    pairs = []
    for rank in range(world_size):
        share = {"rank": rank, "world_size": world_size, "num_workers": num_workers}
        for batch in evaluation_batches(source, numbered, batch_size, with_rows=True, **share):
            pairs += batch.pixel_values.tolist()
    assert sorted(pairs) == [[n, n] for n in GOOD]  # the pictures are grey of their own number


def test_a_batch_of_bad_images_is_counted_and_left_out(source):
    batches = evaluation_batches(source, _transform, 1)
    assert [batch.row_ids.item() for batch in batches] == GOOD
    assert batches.skipped.total() == 3


@pytest.mark.parametrize("max_images", [0, 1, 5, 7, 22, 23, 100])
def test_a_sample_is_the_same_for_all_processes_batches_and_workers(source, max_images):
    expected = [n for n in sampled_rows(NUMBER, max_images).tolist() if n in GOOD] if max_images else []
    for world_size, batch_size, num_workers in ((1, 5, 0), (2, 3, 0), (1, 64, 2)):
        rows, pixels, kinds = [], [], []
        for rank in range(world_size):
            share = {"rank": rank, "world_size": world_size, "num_workers": num_workers}
            for batch in evaluation_batches(source, _transform, batch_size, max_images=max_images, **share):
                rows += batch.row_ids.tolist()
                pixels += batch.pixel_values[:, 0, 0, 0].tolist()
                kinds += batch.labels["kind"].tolist()
        assert sorted(rows) == expected
        assert pixels == rows and kinds == [row % 2 for row in rows]  # pictures and labels are those of the rows


@pytest.mark.parametrize(("num_rows", "max_images"), [(1000, 100), (1000, 333), (5, 5), (5, 9), (10**7, 7)])
def test_a_sample_has_one_row_of_each_part(num_rows, max_images):
    rows = sampled_rows(num_rows, max_images)
    number = min(num_rows, max_images)
    assert len(rows) == number and rows.tolist() == sorted(set(rows.tolist()))
    assert all(part * num_rows // number <= row < (part + 1) * num_rows // number for part, row in enumerate(rows))


@pytest.mark.parametrize("labels", [np.arange(1000) // 100, np.arange(1000) % 10])
def test_a_sample_meets_classes_in_sequence_and_classes_in_turn(labels):
    counts = np.bincount(labels[sampled_rows(1000, 200)], minlength=10)
    assert counts.min() >= 10 and counts.max() <= 30


def test_the_sample_of_a_split_goes_through_tables_of_all_files(tmp_path):
    files = [cv2.imencode(".png", np.full((2, 2), n % 250, np.uint8))[1].tobytes() for n in range(700)]
    pictures = [{"bytes": file, "path": None} for file in files]
    rows = [(0, 90), (90, 91), (91, 500), (500, 700)]
    for number, (start, stop) in enumerate(rows):
        table = pa.table({"image": pictures[start:stop], "label": list(range(start, stop))})
        pq.write_table(table, tmp_path / f"train-{number}.parquet", row_group_size=70)
    found = list(evaluation_batches(open_source(str(tmp_path)), _transform, 32, max_images=150))
    rows = torch.cat([batch.row_ids for batch in found])
    assert rows.tolist() == sampled_rows(700, 150).tolist()
    assert torch.cat([batch.pixel_values for batch in found])[:, 0, 0, 0].tolist() == (rows % 250).tolist()


@pytest.mark.parametrize(("num_images", "message"), [(None, "length is not known"), (NUMBER, "too long to read")])
def test_a_stream_is_sampled_as_far_as_it_is_read_and_says_so_once(source, caplog, num_images, message):
    stream = replace(source, name=f"stream of {num_images}", num_images=num_images)
    stream = replace(stream, records=stream.records.select_columns(["image", "label", "kind"]))
    assert not stream.has_indices
    expected = [0, 1] if num_images is None else [row for row in sampled_rows(20, 2).tolist() if row in GOOD]
    for _ in range(2):
        (batch,) = evaluation_batches(stream, _transform, 5, max_images=2)
        assert batch.row_ids.tolist() == expected
    (record,) = caplog.records
    assert message in record.getMessage() and stream.name in record.getMessage()


def test_it_can_be_read_again_and_moves_no_generator(source):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = [batch.row_ids.tolist() for batch in evaluation_batches(source, _transform, 5)]
    assert [batch.row_ids.tolist() for batch in evaluation_batches(source, _transform, 5)] == first
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_batch_size(source):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        evaluation_batches(source, _transform, 0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_ranges_are_read_in_batches_of_their_own(source, num_workers):
    ranges = [(3, 9), (9, 10), (11, 13), (20, 99)]
    made = list(batches_of_ranges(source, _transform, 4, ranges, num_workers=num_workers))
    assert [(read.first, read.num_rows) for read in made] == [(3, 4), (7, 2), (9, 1), (11, 2), (20, 3)]
    for read in made:
        rows = range(read.first, read.first + read.num_rows)
        assert read.skipped == Counter(BAD[n][1] for n in rows if n in BAD)
        good = [n for n in rows if n not in BAD]
        if read.images is None:
            assert good == []
        else:
            assert read.images.row_ids.tolist() == good
            assert read.images.pixel_values[:, 0, 0, 0].tolist() == good
            assert read.images.labels["kind"].tolist() == [n % 2 for n in good]
    assert made[3].images is None


def test_endless_ranges_end_with_the_data_set(source):
    endless = ((first, first + 5) for first in itertools.count(0, 10))
    rows = [read.first for read in batches_of_ranges(source, _transform, 5, endless)]
    assert rows == [0, 10, 20]


def test_the_first_images_that_cannot_be_used_are_named(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"" if number > 3 else png_of(number))
    source = open_source(str(tmp_path))
    batches = evaluation_batches(source, lambda image: torch.zeros(3), 3)
    assert sum(len(batch.row_ids) for batch in batches) == 4
    assert batches.named == [f"`{tmp_path}/{number}.png` (empty)" for number in (4, 5, 6)]
    rows = [{"bytes": png_of(1), "path": None}, {"bytes": b"x", "path": None}, {"bytes": b"y", "path": "b.jpg"}, None]
    stored = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    batches = evaluation_batches(open_source(stored), lambda image: torch.zeros(3), 3)
    assert sum(len(batch.row_ids) for batch in batches) == 1
    assert batches.named == ["row 1 (not an image)", "`b.jpg` (not an image)", "row 3 (null)"]
    stream = TrainingStream(source, Views("shapes", 8), 2, seed=0)
    named = r"\d empty, such as (`.*\.png` \(empty\)(, )?){3}\. Repair"
    with pytest.raises(UserError, match=r"\d+ of \d+ images of .* cannot be used: " + named):
        for _ in stream:
            pass


def png_of(value):
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()
