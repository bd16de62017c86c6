"""The bytes of a tar: on this machine or at an address, plain or compressed, whole or cut."""

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, BinaryIO, Protocol

from datasets.utils.file_utils import xopen

_UNPACK: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_OTHERS = (b"PK\x03\x04", b"\x28\xb5\x2f\xfd")  # zip and Zstandard, which are left to `datasets`
# What these raise on damaged data, while an `OSError` of another kind comes from the disk or the connection.
_DAMAGE = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)

_AT_ONCE = 2**20  # bytes that are read ahead
_LOOKED_BACK = 2**21  # bytes that are kept to look back at, more than the search for the next header needs
_LARGEST = 2**28  # bytes that are read ahead to see whether a member is whole


class TarBytes(Protocol):
    """What the reader of an archive needs of a file.

    Attributes:
        end: Number of bytes; of a file that is read forwards, after they have all been read.
        lost: Bytes after the end that could not be unpacked, as they are compressed.
    """

    end: int
    lost: int

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes from the place where it stands."""
        ...

    def seek(self, place: int, /) -> int:
        """Go to a place."""
        ...

    def tell(self) -> int:
        """The place where it stands."""
        ...

    def reaches(self, place: int) -> bool:
        """Whether all bytes before a place are there."""
        ...


def is_tar(path: str) -> bool:
    """Whether a name is that of a tar, or of a compressed one."""
    name = path.lower()
    return name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or name.endswith((".tar.gz", ".tar.bz2", ".tar.xz"))


def can_unpack(path: str) -> bool:
    """Whether `opened_tar` can read a file: it is not compressed in a way that only `datasets` knows."""
    with _raw(path) as file:
        return not file.read(8).startswith(_OTHERS)


@contextmanager
def opened_tar(path: str) -> Iterator[TarBytes]:
    """Open a tar; see `archive.pieces`."""
    with _raw(path) as file:
        start = file.read(8)
    unpack = next((unpack for magic, unpack in _UNPACK.items() if start.startswith(magic)), None)
    if unpack is None and "://" not in path:
        with open(path, "rb") as file:
            yield _Plain(file)
        return
    forward = _Forward(lambda: _raw(path), unpack, None if "://" in path else os.path.getsize(path))
    with closing(forward):
        yield forward


def _raw(path: str) -> AbstractContextManager[BinaryIO]:
    # Without blocks `datasets` reads an address in one request, from its beginning to where it is closed.
    return xopen(path, "rb", block_size=0) if "://" in path else open(path, "rb")  # pyright: ignore[reportReturnType]


class _Plain:
    """A file on this machine."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
        self.end, self.lost = os.fstat(file.fileno()).st_size, 0

    def reaches(self, place: int) -> bool:
        return place <= self.end


class _Forward:
    """A file that can only be read forwards, with what was read last.

    Args:
        open_: Opens it at its beginning.
        unpack: Makes a file of what is unpacked of it; None if it is not compressed.
        size: Its size in bytes, if known.
    """

    def __init__(
        self,
        open_: Callable[[], AbstractContextManager[BinaryIO]],
        unpack: Callable[[Any], Any] | None,
        size: int | None,
    ):
        self._open, self._unpack, self._size = open_, unpack, size
        self.end = self.lost = 0
        self._raw: Any = None
        self._begin()

    def _begin(self) -> None:
        self.close()
        self._raw = self._open()
        self._file = self._raw.__enter__()
        self._packed = self._file
        if self._unpack is not None:
            self._file = self._unpack(self._packed)
        self._kept, self._start, self._place, self._ended = bytearray(), 0, 0, False

    def close(self) -> None:
        """Close it."""
        if self._raw is not None:
            self._raw.__exit__(None, None, None)

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, /) -> int:
        if place < self._start:  # rarely: behind a long damage
            self._begin()
        self._place = place
        return place

    def read(self, size: int = -1, /) -> bytes:
        self._read_up_to(None if size < 0 else self._place + size)
        at = self._place - self._start
        data = bytes(self._kept[at:] if size < 0 else self._kept[at : at + size])
        self._place += len(data)
        return data

    def reaches(self, place: int) -> bool:
        if place - self._place <= _LARGEST:  # what is missing of a larger one shows when it is read
            self._read_up_to(place)
        return not self._ended or place <= self.end

    def _read_up_to(self, place: int | None) -> None:
        """Keep all from a bit before the place where it stands up to another, or to the end."""
        while not self._ended and (place is None or self._start + len(self._kept) < place):
            drop = min(self._place - _LOOKED_BACK - self._start, len(self._kept))
            if drop > _AT_ONCE:
                del self._kept[:drop]
                self._start += drop
            self._fill()

    def _fill(self) -> None:
        try:
            # `read1` hands over what came before a damage, and `read` would not.
            data = self._file.read(_AT_ONCE) if self._unpack is None else self._file.read1(_AT_ONCE)
        except (*_DAMAGE, OSError) as error:
            # bzip2 has no error of its own; one of the disk has a number, and one of a connection another type.
            if not isinstance(error, _DAMAGE) and (type(error) is not OSError or error.errno is not None):
                raise
            data = b""
            self.lost = 0 if self._size is None else max(1, self._size - self._packed.tell())
        if data:
            self._kept += data
        else:
            self._ended, self.end = True, self._start + len(self._kept)
