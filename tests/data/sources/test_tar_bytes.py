"""Tars that are compressed or lie at an address: the records of the plain one, and a count of what damage has lost."""

import bz2
import gzip
import io
import lzma
import tarfile
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest
from PIL import Image

from hf_ssl.data.decode.access import Access
from hf_ssl.data.decode.image_bytes import DAMAGED_ARCHIVE
from hf_ssl.data.decode.pictures import SkippedImageError, decode
from hf_ssl.data.decode.unavailable import DataUnavailableError
from hf_ssl.data.order.patience import patient_tables
from hf_ssl.data.sources.archive import Damage, Member, pieces
from hf_ssl.data.sources.open import open_source
from hf_ssl.data.sources.tar_bytes import is_tar
from hf_ssl.data.sources.tars import tar_layout, tar_records

PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
IMAGES = 40


def picture(number):
    """Noise that does not compress, but for the first pixel, which is its number."""
    values = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    values[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def whole():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(IMAGES):
            for name, data in ((f"{number:04}.png", picture(number)), (f"{number:04}.cls", str(number % 3).encode())):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                archive.addfile(about, io.BytesIO(data))
    return content.getvalue()


class Files(ThreadingHTTPServer):
    """Serves `contents` by name, whole and in one answer; the next `failing` answers break off half-way."""

    daemon_threads = True

    def __init__(self):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):  # noqa: N802
                content = self.server.contents.get(self.path[1:])
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if self.command == "GET" and content is not None:
                    if len(content) > 1000 and self.server.failing:
                        self.server.failing -= 1
                        content, self.close_connection = content[: len(content) // 2], True
                    self.wfile.write(content[:100])
                    self.server.silent.wait()
                    self.wfile.write(content[100:])

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.failing = {}, 0
        self.silent = threading.Event()  # unless it is set, an answer breaks off after some bytes
        self.silent.set()

    def handle_error(self, *_):
        pass  # a reader that has seen enough closes the connection


@pytest.fixture(scope="module")
def server():
    with Files() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(params=["here", "address"])
def place(request, tmp_path, server):
    """Puts a file where it is read from; returns its path or address."""

    def put(name, content):
        (tmp_path / name).write_bytes(content)
        server.contents[name] = content
        at = f"http://127.0.0.1:{server.server_address[1]}/{name}"
        return str(tmp_path / name) if request.param == "here" else at

    return put


def read(path):
    """Numbers of the images, and what was skipped."""
    layout = tar_layout([path])
    assert layout is not None
    numbers, skipped = [], Counter()
    for record in tar_records([path], layout, "png").decode(False):
        try:
            numbers.append(int(decode(record["png"])[0, 0, 0]))
        except SkippedImageError as error:
            skipped[error.reason] += 1
    return numbers, dict(skipped)


@pytest.mark.parametrize("packing", PACK)
def test_a_whole_tar_is_read(whole, place, packing):
    assert read(place("a.tar" + packing, PACK[packing](whole))) == (list(range(IMAGES)), {})


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_cut_tar_is_counted(whole, place, packing, part):
    content = PACK[packing](whole)
    path = place("a.tar" + packing, content[: int(part * len(content))])
    if packing == ".bz2":  # whose blocks of 900,000 bytes are whole or lost
        with pytest.raises(OSError, match="is damaged, and nothing in it can be read"):
            tar_layout([path])
        return
    numbers, skipped = read(path)
    assert numbers == list(range(len(numbers))) and 0 < len(numbers) < IMAGES
    assert set(skipped) == {"damaged archive"}


@pytest.mark.parametrize("packing", [".gz", ".xz"])
def test_garbage_in_a_compressed_tar_is_counted_with_what_follows(whole, tmp_path, packing, caplog):
    content = bytearray(PACK[packing](whole))
    middle = len(content) // 2
    content[middle : middle + 100] = b"\xa5" * 100
    (tmp_path / ("a.tar" + packing)).write_bytes(content)
    numbers, skipped = read(str(tmp_path / ("a.tar" + packing)))
    assert 0 <= len(numbers) < IMAGES and sum(skipped.values()) >= 1
    if packing == ".gz":  # half of it is there, and so many images are missing
        assert len(numbers) > IMAGES / 4 and abs(len(numbers) + sum(skipped.values()) - IMAGES) < IMAGES / 4
        assert "cannot be read" in caplog.text


@pytest.mark.parametrize("lost", [1, 8, 9])
def test_a_gzip_file_that_lacks_its_end_is_counted(whole, tmp_path, lost):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole)[:-lost])
    numbers, skipped = read(str(tmp_path / "a.tar.gz"))
    assert len(numbers) >= IMAGES - 1 and skipped["damaged archive"] >= 1


def test_garbage_in_the_middle_is_passed_over_alike(whole, place):
    at = len(whole) // 2 // 512 * 512
    damaged = whole[:at] + b"\xa5" * 3 * 2**20 + whole[at + 2048 :]  # more than is kept to look back at
    found = [
        list(pieces(place(name, pack(damaged)))) for name, pack in (("a.tar", bytes), ("b.tar.gz", gzip.compress))
    ]
    names = [[piece.name for piece in one if isinstance(piece, Member)] for one in found]
    assert names[0] == names[1] and 2 * IMAGES - 6 <= len(names[0]) < 2 * IMAGES
    assert [piece for piece in found[0] if isinstance(piece, Damage)] == [p for p in found[1] if isinstance(p, Damage)]


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_connection_that_breaks_off_loses_nothing(whole, server, packing, monkeypatch):
    monkeypatch.setattr("hf_ssl.data.decode.unavailable._FIRST_PAUSE", 0.001)
    name = "c.tar" + packing
    server.contents[name] = PACK[packing](whole)
    address = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    access = Access(("http://127.0.0.1",), timeout=3600.0)
    source = replace(open_source("digits"), image_column="png", access=access)
    records = tar_records([address], tar_layout([address]), "png", ["png"]).decode(False)
    server.failing = 3
    tables = [table for table, _ in patient_tables(source, records, 7)]
    assert server.failing == 0
    numbers = [int(decode(image)[0, 0, 0]) for table in tables for image in table["png"].to_pylist()]
    assert numbers == list(range(IMAGES))


def test_an_address_that_falls_silent_stops_in_time(whole, server, monkeypatch):
    fsspec.get_filesystem_class("http").clear_instance_cache()  # whose connections have another limit
    monkeypatch.setattr("hf_ssl.data.decode.unavailable._LONGEST_SILENCE", 0.2)
    server.contents["d.tar"] = whole
    address = f"http://127.0.0.1:{server.server_address[1]}/d.tar"
    source = replace(open_source("digits"), image_column="png", access=Access(("http://127.0.0.1",), timeout=0.5))
    records = tar_records([address], tar_layout([address]), "png", ["png"]).decode(False)
    server.silent.clear()
    with pytest.raises(DataUnavailableError, match="d.tar"):
        list(patient_tables(source, records, 7))
    server.silent.set()
    fsspec.get_filesystem_class("http").clear_instance_cache()


def test_tars_of_the_hub_are_read_and_counted(whole, online, monkeypatch):
    import huggingface_hub
    from hub_server import Repo

    monkeypatch.setattr("datasets.config.HF_ENDPOINT", huggingface_hub.constants.ENDPOINT)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    repo = online.repos["datasets/org/tars"] = Repo()
    repo.add("main", {"train-0.tar": whole, "train-1.tar": whole[: len(whole) // 2]})
    source = open_source("org/tars", data_timeout=0.0)
    assert source.access.remote and list(source.labels) == ["cls"]
    images = [image for table, _ in patient_tables(source, source.records, 16) for image in table["png"].to_pylist()]
    lost = [image for image in images if image["bytes"] is None]
    assert abs(len(images) - len(lost) - 1.5 * IMAGES) <= 1
    assert {image["path"] for image in lost} == {DAMAGED_ARCHIVE}
    online.faults = [("GET", "train-1.tar", "truncated")] * 20
    with pytest.raises(DataUnavailableError, match=r"train-1\.tar"):
        list(patient_tables(source, source.records, 16))
    fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_a_tar_that_is_replaced_while_it_is_read_stops_by_name(whole, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    source = open_source(str(path), data_timeout=0.0)
    reading = patient_tables(source, source.records, 5)
    next(reading)
    path.write_bytes(whole[: len(whole) // 4])
    with pytest.raises(DataUnavailableError, match=r"a\.tar` has changed since it was opened"):
        list(reading)


def test_the_names_of_tars():
    assert all(map(is_tar, ["a.tar", "b/A.TAR", "x.tar.gz", "x.tgz", "hf://datasets/a/b@c/x.tar.xz"]))
    assert not any(map(is_tar, ["a.gz", "tar", "a.tar.zst", "a.zip", "a.tar.parquet"]))
