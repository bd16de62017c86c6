"""A data set can make the program read only what belongs to it: no address of the inner network, no picture beside."""

import io
import json
import threading
import zipfile
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_ssl.data.decode.access import Access, roots_of
from hf_ssl.data.decode.unavailable import DataUnavailableError
from hf_ssl.data.order.cache import CachedDraws, CachedViews, fill_cache
from hf_ssl.data.order.ordered import evaluation_batches
from hf_ssl.data.order.rows import RowReader
from hf_ssl.data.order.stream import TrainingStream
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.views.cpu import Views, find_recipe
from hf_ssl.errors import UserError

OUTSIDE = "path outside the data set"
ROOTS = ("hf://datasets/org/photos@abc/",)


@pytest.mark.parametrize(
    "roots, path, permitted",
    [
        ((), "/home/me/photo.png", True),
        ((), "photo::1.png", False),  # fsspec would take it for a chain
        ((), "file:///home/me/photo.png", True),
        ((), "file://http://127.0.0.1/x.png", True),  # a file of this odd name, and nothing else
        ((), "zip://a.png::/home/me/photos.zip", True),
        ((), "http://127.0.0.1/x.png", False),
        ((), "HTTP://127.0.0.1/x.png", False),
        ((), "s3://bucket/x.png", False),
        ((), "zip://a.png::http://127.0.0.1/photos.zip", False),
        ((), "simplecache::http://127.0.0.1/x.png", False),
        ((), "hf://datasets/org/photos@abc/x.png", False),
        (ROOTS, "hf://datasets/org/photos@abc/train/x.png", True),
        (ROOTS, "zip://a/x.png::hf://datasets/org/photos@abc/photos.zip", True),
        (ROOTS, "hf://datasets/org/photos@abc/../../other/x.png", False),
        (ROOTS, "hf://datasets/org/photos@abc/%2e%2e/x.png", False),
        (ROOTS, "hf://datasets/org/secret@main/x.png", False),
        (ROOTS, "hf://datasets/org/photos@abcd/x.png", False),
        (ROOTS, "http://127.0.0.1/x.png", False),
        (ROOTS, "/home/me/photo.png", False),
        (ROOTS, "photo.png", False),
        (ROOTS, "file:///home/me/photo.png", False),
        (ROOTS, "zip://a.png::/home/me/photos.zip", False),
        (ROOTS, "reference::hf://datasets/org/photos@abc/x.png", False),
        (
            roots_of(["https://host/data/a.zip", "https://host/data/b.zip"]),
            "zip://x.png::https://host/data/b.zip",
            True,
        ),
        (roots_of(["https://host/data/a.parquet"]), "https://host/data/x.png", True),
        (roots_of(["https://host/data/a.parquet"]), "https://host/database/x.png", False),
        (roots_of(["https://host/data/a.parquet"]), "https://host.evil/data/x.png", False),
        (roots_of([]), "photo.png", False),
        (roots_of([]), "http://127.0.0.1/x.png", False),
    ],
)
def test_what_a_record_may_name(roots, path, permitted):
    assert Access(roots).permits(path) == permitted
    assert Access(roots, allow_paths=True).permits(path)


def test_the_root_of_a_hub_data_set_is_its_commit():
    files = ["hf://datasets/org/photos@abc/a/x.png", "zip://y.png::hf://datasets/org/photos@abc/z.zip"]
    assert roots_of(files) == ROOTS
    assert roots_of(["hf://datasets/mnist@abc/x.parquet"]) == ("hf://datasets/mnist@abc/",)


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def inner_network():
    """A server that a data set has no business with; `.requests` counts what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.server.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(png(9))))
            self.end_headers()
            self.wfile.write(png(9))

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = 0
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def address(server):
    return f"http://127.0.0.1:{server.server_address[1]}/secret.png"


def parquet(images):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": images, "label": list(range(len(images)))}
    file = io.BytesIO()
    pq.write_table(pa.table(rows, schema=features.arrow_schema), file)
    return file.getvalue()


def named(*paths):
    return [{"bytes": None, "path": path} for path in paths]


def seen(source):
    """Grey levels of the images that can be read, and what was skipped."""
    batches = evaluation_batches(source, lambda image: torch.tensor(image[0, 0]), 4)
    levels = [int(level) for batch in batches for level in batch.pixel_values[:, 0]]
    return levels, dict(batches.skipped)


def test_a_local_table_gives_files_but_no_addresses(tmp_path, inner_network):
    (tmp_path / "mine.png").write_bytes(png(5))
    paths = [str(tmp_path / "mine.png"), address(inner_network), "simplecache::" + address(inner_network)]
    images = [{"bytes": png(3), "path": address(inner_network)}, *named(*paths), None]
    (tmp_path / "table.parquet").write_bytes(parquet(images))
    name = str(tmp_path / "table.parquet")
    assert seen(open_source(name)) == ([3, 5], {OUTSIDE: 2, "null": 1})
    assert inner_network.requests == 0
    levels, _ = seen(open_source(name, allow_paths=True))
    assert levels == [3, 5, 9, 9] and inner_network.requests > 0


def test_a_column_of_plain_paths_follows_the_same_rule(tmp_path, inner_network):
    (tmp_path / "mine.png").write_bytes(png(5))
    pq.write_table(pa.table({"image": [str(tmp_path / "mine.png"), address(inner_network)]}), tmp_path / "t.parquet")
    assert seen(open_source(str(tmp_path / "t.parquet"))) == ([5], {OUTSIDE: 1})
    assert inner_network.requests == 0


@pytest.mark.parametrize("cache", ["none", "uint8"])
def test_training_asks_no_address(tmp_path, inner_network, cache):
    images = [{"bytes": png(value), "path": None} for value in range(12)] + named(*[address(inner_network)] * 4)
    (tmp_path / "table.parquet").write_bytes(parquet(images))
    source = DataSettings(dataset=str(tmp_path / "table.parquet")).open()
    if cache == "uint8":
        assert set(fill_cache(source, torch.device("cpu")).reasons.values()) == {OUTSIDE}
    else:
        stream = iter(TrainingStream(source, Views("shapes", 8), 4, seed=0, max_skipped_ratio=1.0))
        for _ in range(4):
            batch = next(stream)
        assert batch.skipped[OUTSIDE] >= 4
    path = f"\0{OUTSIDE}\0{address(inner_network)}"
    assert RowReader(source).images([13]) == {13: {"bytes": None, "path": path}}
    assert inner_network.requests == 0


@pytest.fixture
def hub(online, monkeypatch):
    """A Hub for `datasets`; call it with the files of `org/photos`."""
    import fsspec
    import huggingface_hub
    from hub_server import Repo

    monkeypatch.setattr("datasets.config.HF_ENDPOINT", huggingface_hub.constants.ENDPOINT)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)

    def upload(files):
        repo = online.repos["datasets/org/photos"] = Repo()
        repo.add("main", files)
        return online

    fsspec.get_filesystem_class("hf").clear_instance_cache()
    yield upload
    fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_data_of_the_hub_names_nothing_outside(tmp_path, inner_network, hub):
    (tmp_path / "mine.png").write_bytes(png(5))
    (tmp_path / "mine.zip").write_bytes(zipped({"a.png": png(6)}))
    mine = [str(tmp_path / "mine.png"), f"file://{tmp_path}/mine.png", f"zip://a.png::{tmp_path}/mine.zip"]
    images = [
        {"bytes": png(3), "path": mine[0]},
        *named(*mine, address(inner_network), "hf://datasets/org/x@main/a.png"),
    ]
    state = hub({"data/train-00000-of-00001.parquet": parquet(images)})
    source = open_source("org/photos")
    assert seen(source) == ([3], {OUTSIDE: 5})
    assert inner_network.requests == 0 and not any("org/x" in request for request in state.requests)
    stream = datasets.load_dataset("org/photos", split="train", streaming=True)
    assert seen(open_source(stream)) == ([3], {OUTSIDE: 5})
    levels, skipped = seen(open_source("org/photos", allow_paths=True))
    assert levels == [3, 5, 5, 6, 9] and skipped == {"missing file": 1}


def zipped(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def test_an_archive_of_this_machine_that_is_damaged_costs_its_images_and_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ssl.data.decode.unavailable.time.sleep", lambda _: pytest.fail("it was tried again"))
    content = zipped({"a.png": png(1), "b.png": png(2)})
    (tmp_path / "good.zip").write_bytes(content)
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    (tmp_path / "bad.zip").write_bytes(content.replace(b"IDAT", b"idat"))  # its checksum differs
    secret = bytearray(content)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        secret[content.index(mark) + at] |= 1  # encrypted, as far as its head tells
    (tmp_path / "secret.zip").write_bytes(secret)
    names = ["good", "cut", "bad", "secret", "missing"]
    paths = [f"zip://{member}.png::{tmp_path}/{name}.zip" for name in names for member in "abc"]
    (tmp_path / "table.parquet").write_bytes(parquet(named(*paths)))
    levels, skipped = seen(open_source(str(tmp_path / "table.parquet")))
    assert levels == [1, 2, 2]  # of the archive that is encrypted, one is not
    wanted = {"damaged archive": 5, "format not supported: zip": 1, "missing file": 6}
    assert skipped == wanted


def test_an_address_that_no_package_reads_is_counted(tmp_path):
    paths = ["nowhere://a/b.png", "adl://account/b.png"]
    (tmp_path / "table.parquet").write_bytes(parquet([*named(*paths), {"bytes": png(1), "path": None}]))
    levels, skipped = seen(open_source(str(tmp_path / "table.parquet"), allow_paths=True))
    assert (levels, skipped) == ([1], {"no package for its address": 2})


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_images_on_the_hub_is_its_own(hub, packed):
    files = {f"train/{number}.png": png(number) for number in range(6)}
    files["train/2.png"] = b"no picture"
    hub({"data.zip": zipped(files)} if packed else files)
    wanted = ([0, 1, 3, 4, 5], {"not an image": 1})
    assert seen(open_source("org/photos")) == wanted
    assert seen(open_source(datasets.load_dataset("org/photos", split="train", streaming=True))) == wanted
    batches = iter(TrainingStream(open_source("org/photos"), Views("shapes", 8), 2, seed=0, max_skipped_ratio=0.5))
    assert [next(batches).skipped for _ in range(5)][-1]["not an image"] >= 2  # in the third epoch


def test_a_cache_of_hub_data_trains(hub):
    hub({"data/train-00000-of-00001.parquet": parquet([{"bytes": png(value), "path": None} for value in range(12)])})
    source = open_source("org/photos")
    source = replace(source, num_images=12)  # as the card of a data set tells
    cache = fill_cache(source, torch.device("cpu"))
    recipe = find_recipe("crop_and_flip", None)
    draws, finish = CachedDraws(recipe, cache), CachedViews(recipe, 8, cache)
    batches = iter(TrainingStream(cache.source, draws, 4, seed=0, pictures=draws.pictures, finish=finish))
    assert [next(batches).skipped for _ in range(3)] == [{}] * 3


def test_a_metadata_file_names_nothing_outside(tmp_path, inner_network, hub):
    (tmp_path / "mine.png").write_bytes(png(5))
    rows = "\n".join(f"{name},{number}" for number, name in enumerate(["0.png", str(tmp_path / "mine.png")]))
    hub({"train/0.png": png(1), "train/metadata.csv": f"file_name,label\n{rows}\n".encode()})
    with pytest.raises(UserError, match="relative path pointing inside"):
        seen(open_source("org/photos"))


def test_an_image_of_the_hub_that_fails_is_tried_again_in_the_worker(hub, monkeypatch):
    import huggingface_hub.utils._http

    monkeypatch.setattr("hf_ssl.data.decode.unavailable._FIRST_PAUSE", 0.001)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
    state = hub({f"train/{number}.png": png(number) for number in range(4)})
    source = open_source("org/photos", data_timeout=3600.0)
    state.faults = [("GET", "resolve", "500")] * 8
    assert seen(source) == ([0, 1, 2, 3], {})
    source = open_source("org/photos", data_timeout=0.2)
    state.faults = [("GET", "3.png", "500")] * 10**4
    batches = evaluation_batches(source, lambda image: torch.zeros(3), 2, num_workers=1)
    with pytest.raises(
        DataUnavailableError, match=r"^`hf://datasets/org/photos@\w+/train/3.png` could not be read within"
    ):
        Counter(len(batch.row_ids) for batch in batches)


def readme(**config):
    """A README whose only config is this one."""
    return "---\n" + json.dumps({"configs": [{"config_name": "default", **config}]}) + "\n---\n"


# `{outside}` is a folder beside the data set, `{server}` an address of the inner network.
ELSEWHERE = [
    {"data_files": "../outside/*.png"},
    {"data_files": [{"split": "train", "path": ["train/*.png", "{outside}/*.png"]}]},
    {"data_files": "train/../../outside/*.png"},
    {"data_files": "{server}"},
    {"data_files": "simplecache::{server}"},
    {"data_files": "file://{outside}/5.png"},
    {"data_dir": "../outside"},
    {"data_dir": "{outside}"},
]


@pytest.fixture(params=ELSEWHERE, ids=lambda config: json.dumps(config))
def elsewhere(request, tmp_path, inner_network):
    """A README that names files outside of its repository."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "5.png").write_bytes(png(5))
    text = json.dumps(request.param)
    text = text.replace("{outside}", str(tmp_path / "outside")).replace("{server}", address(inner_network))
    return readme(**json.loads(text))


def test_the_readme_of_a_folder_names_nothing_outside_of_it(tmp_path, inner_network, elsewhere):
    folder = tmp_path / "cloned"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "3.png").write_bytes(png(3))
    (folder / "README.md").write_text(elsewhere)
    with pytest.raises(UserError, match=r"The README.md of `.*cloned` must name files of its own folder"):
        open_source(str(folder))
    assert inner_network.requests == 0
    # Who asks for files may ask for any.
    assert seen(open_source(str(folder), data_files="../outside/*.png")) == ([5], {})
    assert seen(open_source(str(folder), data_files="train/*.png")) == ([3], {})


def test_the_readme_of_a_repository_on_the_hub_names_nothing_outside_of_it(inner_network, hub, elsewhere):
    hub({"README.md": elsewhere.encode(), "train/3.png": png(3)})
    with pytest.raises(UserError, match="The README.md of `org/photos` must name files of its own folder"):
        open_source("org/photos")
    assert inner_network.requests == 0


def test_a_readme_names_files_inside(tmp_path, hub):
    text = readme(data_files=[{"split": "train", "path": "./train/*.png"}], data_dir="a/b")
    for place in ("a/b/train/3.png", "train/5.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(png(int(place[-5])))
    (tmp_path / "README.md").write_text(text)
    assert seen(open_source(str(tmp_path))) == ([3], {})
    text = readme(data_files=[{"split": "train", "path": "train/*.png"}])
    hub({"README.md": text.encode(), "train/3.png": png(3), "other/5.png": png(5)})
    assert seen(open_source("org/photos")) == ([3], {})
