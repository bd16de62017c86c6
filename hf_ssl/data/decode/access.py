"""Which files and addresses a data set may make this program read, and for how long it is tried."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from hf_ssl.data.decode.unavailable import DATA_TIMEOUT

_ARCHIVES = frozenset(["zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd"])  # what `datasets` opens inside of a file
_OF_HUB = re.compile(r"hf://[^@]+@[^/]+/")
_NOWHERE = "\0"  # no address begins so


def is_address(path: str) -> bool:
    """Whether a path or pattern is an address, such as `https://...` or `zip://a.png::https://...`."""
    return "://" in path or "::" in path


def leads_outside(path: str) -> bool:
    """Whether a path or pattern, relative to a folder or repository, is an address or may lie outside of that."""
    parts = os.path.normpath(path.replace("\\", "/"))
    return is_address(path) or os.path.isabs(parts) or parts.split("/")[0] in ("..", "~")


@dataclass(frozen=True)
class Access:
    """How the records of a data set may be read.

    A record may hold a path instead of an image. A data set from elsewhere could so make this program fetch addresses
    of the inner network, or read any picture of this machine.

    Args:
        roots: What the addresses of a data set from elsewhere begin with; empty for one on this machine.
        allow_paths: Read whatever a record names.
        timeout: Seconds for which reading is tried again, at least 0.
    """

    roots: tuple[str, ...] = ()
    allow_paths: bool = False
    timeout: float = DATA_TIMEOUT

    @property
    def remote(self) -> bool:
        """Whether the data set comes from elsewhere."""
        return bool(self.roots)

    def permits(self, path: str) -> bool:
        """Whether the path of a record may be read: files in data of this machine, else what belongs to the data."""
        if self.allow_paths or path.startswith("\0"):  # which no file has: a mark such as `DAMAGED_ARCHIVE`
            return True
        *inner, outer = path.split("::")
        if any(part.partition("://")[0] not in _ARCHIVES for part in inner):
            return False
        protocol, separator, place = outer.partition("://")
        if not separator or protocol == "file":
            return not self.remote
        return ".." not in unquote(place).split("/") and outer.startswith(self.roots)


def roots_of(files: Iterable[str]) -> tuple[str, ...]:
    """`Access.roots` of a data set of such files: its repository on the Hub, or the folders of its addresses.

    Args:
        files: Paths and addresses; at least one is an address, or nothing is known.
    """
    roots = set()
    for file in files:
        outer = file.rpartition("::")[2]
        if "://" in outer and not outer.startswith("file://"):
            of_hub = _OF_HUB.match(outer)
            roots.add(of_hub[0] if of_hub else outer.rpartition("/")[0] + "/")
    return tuple(sorted(roots)) or (_NOWHERE,)
