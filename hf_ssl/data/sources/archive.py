"""Members of a tar, also of a damaged one.

Python's `tarfile` ends without a word where an archive was cut or holds garbage. Here such a place is a piece of its
own, and reading goes on at the next member that is whole.
"""

import os
import tarfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial

from hf_ssl.data.sources.tar_bytes import TarBytes, opened_tar

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a member's header; its content fills whole blocks."""

_MAGIC, _MAGIC_AT = b"ustar", 257  # in the header of a member
_SCANNED = 2**20  # bytes in memory while looking for the next member
_LONGEST_PADDING = 2**20  # zeros after the end of an archive; more stand for data that never came
# What `tarfile` raises on damaged headers.
_TAR_ERRORS = (tarfile.TarError, ValueError, ArithmeticError, LookupError, EOFError)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Args:
        name: With its folders.
        size: In bytes.
        read: Gives the content; only before the next piece is asked for.
    """

    name: str
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Damage:
    """A place where an archive is damaged.

    Args:
        position: Its first byte.
        unread: Bytes that cannot be read; 0 where the archive ends too early.
    """

    position: int
    unread: int


def pieces(path: str) -> Iterator[Member | Damage]:
    """Files in an archive, without hidden ones, and the places where it is damaged, in order.

    Args:
        path: A tar on this machine or at an address; also one that gzip, bzip2 or xz compressed.

    Raises:
        OSError: If the system does not let the archive be read. Names it.
        Exception: What a lost connection raises.
    """
    try:
        with opened_tar(path) as file:
            yield from _pieces_of(file)
    except OSError as error:
        if path in str(error):
            raise
        raise OSError(f"`{path}` cannot be read: {error.strerror or error}") from error


def _pieces_of(file: TarBytes) -> Iterator[Member | Damage]:
    position = 0
    while True:
        position, ended = yield from _members(file, position)
        if ended:
            following = _after_zeros(file, position)
            if following is None:
                if file.lost or file.end - position > _LONGEST_PADDING:
                    yield Damage(position, file.lost + file.end - position)
                return
            file.seek(following)
            position = following
            if _is_header(file.read(BLOCK)):  # archives that were joined: the next one
                continue
        start = _next_header(file, position + 1)
        end = file.end + file.lost if start is None else start
        yield Damage(min(position, end), max(0, end - position))
        if start is None:
            return
        position = start


def _members(file: TarBytes, position: int) -> Generator[Member, None, tuple[int, bool]]:
    """Members from a header on. Returns where they end, and whether the mark of the end of an archive is there."""
    file.seek(position)
    try:
        archive = tarfile.TarFile(fileobj=file)  # pyright: ignore[reportArgumentType]
    except _TAR_ERRORS:
        file.seek(position)
        return position, _is_end(file.read(BLOCK))
    while True:
        try:
            member = archive.next()
        except _TAR_ERRORS:
            return archive.offset, False
        if member is None:
            file.seek(archive.offset)
            return archive.offset, _is_end(file.read(BLOCK))
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        if not member.isreg():
            continue
        if not member.issparse() and not file.reaches(member.offset_data + member.size):
            return member.offset, False
        if not os.path.basename(member.name).startswith((".", "__")):  # hidden, as `datasets` has it
            yield Member(member.name, member.size, partial(_content, archive, file, member))


def _content(archive: tarfile.TarFile, file: TarBytes, member: tarfile.TarInfo) -> bytes:
    if member.issparse():
        content = archive.extractfile(member)
        return b"" if content is None else content.read()
    file.seek(member.offset_data)
    return file.read(member.size)


def _is_end(block: bytes) -> bool:
    return len(block) == BLOCK and not block.strip(b"\0")


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except _TAR_ERRORS:
        return False
    return True


def _after_zeros(file: TarBytes, position: int) -> int | None:
    """Start of the first block that is not zero; None if there is none."""
    file.seek(position)
    while data := file.read(_SCANNED):
        zeros = len(data) - len(data.lstrip(b"\0"))
        if zeros < len(data):
            return position + zeros // BLOCK * BLOCK
        position += len(data)
    return None


def _next_header(file: TarBytes, position: int) -> int | None:
    """Where the next member begins, which garbage may have moved off the usual places; None if there is none."""
    while True:
        file.seek(position)
        data = file.read(_SCANNED)
        found = data.find(_MAGIC, _MAGIC_AT)
        while 0 <= found <= len(data) - (BLOCK - _MAGIC_AT):
            start = found - _MAGIC_AT
            if _is_header(data[start : start + BLOCK]):
                return position + start
            found = data.find(_MAGIC, found + 1)
        if len(data) < _SCANNED:
            return None
        position += len(data) - BLOCK + 1
