"""Objects of `datasets` as data sets: rows, labels, splits, names and what identifies them."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_ssl.data.decode.pictures import decode
from hf_ssl.data.order.cache import fill_cache
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.files import INDEX_COLUMN
from hf_ssl.data.sources.objects import is_shuffled
from hf_ssl.data.sources.open import name_of, open_source
from hf_ssl.errors import UserError
from hf_ssl.hub.cards import hub_id_of_data, name_of_data

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})


def _picture(number):
    return Image.new("RGB", (5, 4), (number, 0, 0))


def _rows(numbers):
    for number in numbers:
        yield {"image": _picture(number), "label": number % 2}


def _dataset(count=40, **options):
    numbers = range(count)
    return datasets.Dataset.from_dict(
        {"image": list(map(_picture, numbers)), "label": [n % 2 for n in numbers]}, features=FEATURES, **options
    )


def _numbers(source):
    return [int(decode(record[source.image_column])[0, 0, 0]) for record in source.records]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data, range(40)),
        (lambda data: data.select(range(39, 9, -1)), range(39, 9, -1)),
        (lambda data: data.select(range(10, 20)), range(10, 20)),
        (lambda data: data.filter(lambda row: row["label"] == 1), range(1, 40, 2)),
        (lambda data: data.with_format("torch"), range(40)),
        (lambda data: data.add_column(INDEX_COLUMN, [7] * 40), range(40)),
        (lambda data: data.cast_column("image", datasets.Image(decode=False)), range(40)),
    ],
)
def test_rows_come_in_the_order_of_the_object_and_are_numbered(change, expected):
    source = open_source(change(_dataset()))
    assert _numbers(source) == list(expected) and source.num_images == len(expected)
    assert [record["label"] for record in source.records] == [number % 2 for number in expected]
    assert [record[INDEX_COLUMN] for record in source.records] == list(range(len(expected)))
    assert source.labels == {"label": ["even", "odd"]} and source.records.num_shards > 0
    assert RowReader(source).images([3])[3] == list(source.records)[3]["image"]


def test_a_transform_that_would_not_be_applied_is_refused():
    changed = _dataset().with_transform(lambda rows: {"image": rows["image"][::-1]})
    for data in (changed, datasets.DatasetDict(train=changed, test=_dataset())):
        with pytest.raises(UserError, match=r"split `train` of the in-memory data set has one .* Apply it by `.map`"):
            open_source(data)
    assert open_source(datasets.DatasetDict(train=changed, test=_dataset()), split="test").num_images == 40
    assert _numbers(open_source(changed.with_format(None))) == list(range(40))


@pytest.mark.parametrize("dataset", [None, 3, [_picture(1)]])
def test_what_is_no_data_set_is_refused(dataset):
    with pytest.raises(UserError, match=f"`dataset` must be a folder, .*; got a `{type(dataset).__name__}`"):
        open_source(dataset)


def test_columns_are_found_as_in_files(tmp_path):
    file = tmp_path / "a.png"
    _picture(9).save(file)
    paths = datasets.Dataset.from_dict({"photo": [str(file)] * 3, "target": [2, 1, 0], "text": ["a", "b", "c"]})
    source = open_source(paths)
    assert _numbers(source) == [9] * 3 and source.labels == {"target": []}
    raw = datasets.Dataset.from_dict({"data": [file.read_bytes()] * 3, "kind": [1, 1, 0], "place": [2, 1, 0]})
    source = open_source(raw, label_column="kind", index_column="place")
    assert (
        source.image_column == "data"
        and source.labels == {"kind": []}
        and [record[INDEX_COLUMN] for record in source.records] == [2, 1, 0]
    )
    with pytest.raises(UserError, match="must be two columns, got `kind` for both"):
        open_source(raw, label_column="kind", index_column="kind")
    with pytest.raises(UserError, match="`in-memory data set` has no column of images. It has: `text`"):
        open_source(datasets.Dataset.from_dict({"text": ["a"]}))


def test_saved_and_loaded_objects_are_read_from_the_disk(tmp_path):
    _dataset().select(range(39, -1, -1)).save_to_disk(tmp_path)
    source = open_source(datasets.load_from_disk(tmp_path))
    assert _numbers(source) == list(range(39, -1, -1))
    cache = fill_cache(source, torch.device("cpu"))
    assert cache.pictures[:, 0, 0, 0].tolist() == list(range(39, -1, -1))


@pytest.mark.parametrize("features", [FEATURES, None])
def test_streams_are_read_from_what_their_functions_give(features):
    stream = datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs={"numbers": list(range(12))})
    source = open_source(stream)
    assert _numbers(source) == list(range(12))
    assert source.num_images is None and not source.has_indices
    assert source.labels == {"label": ["even", "odd"] if features else []}
    smaller = stream.map(lambda row: {"image": row["image"].resize((2, 2))})
    assert decode(next(iter(open_source(smaller).records))["image"]).shape == (2, 2, 3)


def test_splits_are_those_of_the_object():
    parts = {"train": _dataset(), "test": _dataset(8)}
    both = datasets.DatasetDict(parts)
    streamed = datasets.IterableDatasetDict({name: part.to_iterable_dataset() for name, part in parts.items()})
    for data in (both, streamed):
        assert [len(_numbers(open_source(data, split=split))) for split in ("train", "test")] == [40, 8]
        with pytest.raises(UserError, match="has no split `validation`. It has: train, test"):
            open_source(data, split="validation")
    part = _dataset(split=datasets.ReadInstruction("test", to=10, unit="%")._relative_instructions[0].splitname)
    assert open_source(part, split="test").num_images == 40
    with pytest.raises(UserError, match="is the split `test` and has no `train`"):
        open_source(part)
    with pytest.raises(UserError, match="Split `train` of `in-memory data set` holds no images"):
        open_source(_dataset().select([]))
    with pytest.raises(UserError, match="`dataset_revision` is for folders and the Hub"):
        open_source(both, revision="main")


def test_fingerprints_tell_objects_apart_and_stay():
    changes = [
        _dataset(),
        _dataset(39),
        _dataset().shuffle(seed=1),
        _dataset().shuffle(seed=2),
        _dataset().to_iterable_dataset(),
        _dataset().shuffle(seed=1).to_iterable_dataset(),
        _dataset().to_iterable_dataset(num_shards=2),
    ]
    found = [open_source(data).fingerprint for data in changes]
    assert len(set(found)) == len(found)
    assert open_source(_dataset()).fingerprint == found[0]
    assert open_source(_dataset().to_iterable_dataset()).fingerprint == found[4]


def test_names_claim_no_file_no_hub_id_and_nothing_that_the_package_draws(tmp_path, monkeypatch):
    (tmp_path / "shapes").mkdir()
    for number in range(2):
        _picture(number).save(tmp_path / "shapes" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    named_shapes = datasets.load_dataset("./shapes", cache_dir=str(tmp_path / "cache"))
    by_builder = datasets.load_dataset("imagefolder", data_dir="shapes", streaming=True)
    from_hub = _dataset()
    from_hub.info.builder_name, from_hub.info.dataset_name = "parquet", "org/cifar10"
    expected = {
        "in-memory data set": _dataset(),
        "in-memory data set (shapes)": named_shapes,
        "in-memory data set (cifar10)": datasets.DatasetDict(train=from_hub),
        "streamed data set": by_builder,
    }
    for name, data in expected.items():
        about = DataSettings(dataset=data).described()
        assert name_of(data) == about["dataset"] == name and about["in_memory"]
        assert hub_id_of_data(about) is None and name_of_data(about) == Path(name).name == name
    assert name_of("uoft-cs/cifar10") == DataSettings(dataset="uoft-cs/cifar10").described()["dataset"]
    assert not DataSettings().described()["in_memory"]


def test_a_shuffle_of_the_users_is_noticed_wherever_it_is():
    stream = _dataset().to_iterable_dataset(num_shards=2)
    shuffled = stream.shuffle(seed=1, buffer_size=4)
    joined = datasets.interleave_datasets([stream, shuffled.take(3)])
    found = [is_shuffled(open_source(one).records) for one in (stream, shuffled, shuffled.take(5), joined)]
    assert found == [False, True, True, True]


def test_another_kind_of_object_is_refused():
    with pytest.raises(UserError, match="`dataset` must be text or .*, got \\[1, 2\\]"):
        DataSettings(dataset=np.array([1, 2]).tolist())
    with pytest.raises(UserError, match="must be a data set, got a `list`"):
        open_source(datasets.DatasetDict({"train": [1]}))
