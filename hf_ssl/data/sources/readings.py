"""What was understood of a folder, said before it is used, and folders that can be read in two ways: the user chooses.

The classes are those that `datasets` finds. Its reading can lose images (`vehicles/{plane,train}` is the split `train`
to it) or take the names of splits for classes (`cat/{train,test}`); then the user chooses.
"""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass

from datasets import Split
from datasets.data_files import (
    DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME,
    DEFAULT_PATTERNS_SPLIT_IN_FILENAME,
    SPLIT_KEYWORDS,
)
from datasets.packaged_modules import _ALL_METADATA_FILENAMES
from fsspec.utils import glob_translate

from hf_ssl.data.sources.listing import is_image
from hf_ssl.data.sources.patterns import format_of
from hf_ssl.data.sources.resolve import Resolved, counted, help_for
from hf_ssl.errors import UserError

_SHOWN = 10  # classes or folders named in a line
_WORDS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
_SEPARATORS = re.compile("[-._ 0-9]")  # those of the patterns of `datasets`


@dataclass(frozen=True)
class Classes:
    """Classes that the folders of images are.

    Args:
        names: In the order of their numbers; empty without classes.
        of: Split -> class of each image, in the order of its files; None where it has none.
        reason: Why there are no classes.
    """

    names: list[str]
    of: dict[str, list[str] | None]
    reason: str = ""


def classes_of(resolved: Resolved) -> Classes:
    """The classes of a folder of images without metadata, by the rule of `ImageFolder`.

    The folder that holds an image is its class, if there are two or more in all splits so far and all images lie
    equally deep; `drop_labels` false makes classes anyway, and true none. Where all these folders are named after
    splits, they are no classes unless `drop_labels` is false.
    """
    drop = resolved.options.get("drop_labels")
    if drop:
        return Classes([], {}, "`drop_labels`")
    root = os.path.basename(resolved.listing.folder)
    found: dict[str, list[str] | None] = {}
    names, depths = set[str](), set[int]()
    add = False
    for split, files in resolved.splits.items():
        own = [os.path.basename(os.path.dirname(file)) or root for file in files]
        names.update(own)
        depths.update(resolved.path(file).count("/") for file in files)
        add = (len(names) > 1 and len(depths) == 1) if drop is None else True
        found[split] = own if add else None
    if not add:
        return Classes([], {}, "one folder" if len(names) < 2 else "images lie at different depths")
    if drop is None and resolved.found_by == "folders" and all(map(split_named, names)):
        return Classes([], {}, f"{_listed(sorted(names))} are splits; `--drop_labels false` makes them classes")
    return Classes(sorted(names), found)


def split_named(folder: str, *, any_case: bool = False) -> str | None:
    """The split after which `datasets` takes a folder or file to be named; None if it is none."""
    parts = _SEPARATORS.split(folder.lower() if any_case else folder)
    return next((_WORDS[part] for part in parts if part in _WORDS), None)


def check_reading(name: str, resolved: Resolved, classes: Classes | None) -> None:
    """Refuse a folder that can be read in two ways, unless the user has chosen.

    Args:
        name: What messages call the folder.
        resolved: The reading of `datasets`.
        classes: Of a folder of images without metadata.

    Raises:
        UserError: With both readings and the flags that choose.
    """
    if resolved.found_by in ("given", "card", "shards"):
        return
    _check_formats(name, resolved)
    _check_splits(name, resolved)
    if resolved.found_by in ("folders", "files"):
        _check_lost(name, resolved)
    if classes is not None and resolved.options.get("drop_labels") is None:
        _check_classes(name, resolved, classes)


def _check_formats(name: str, resolved: Resolved) -> None:
    """Tables and images where `datasets` reads those that are more files."""
    others = [file for file in resolved.aside if not file.startswith("assets/")]
    if resolved.module == "imagefolder":
        others = [file for file in others if not file.endswith((".json", ".jsonl", ".csv", ".tsv"))]  # annotations
    elif resolved.module in ("csv", "json"):
        others = [file for file in others if is_image(file)]
    else:
        return
    if not others:
        return
    own = [file for files in resolved.splits.values() for file in files]
    raise UserError(
        f"`{name}` can be read in two ways: as `datasets` does, {_format(resolved)} of {_files(len(own))} without the "
        f"{_files(len(others))} of other formats beside them, by --data_files '{_by_endings(own)}'; or only the "
        f"others, by --data_files '{_by_endings(others)}'. Choose one."
    )


def _by_endings(files: list[str]) -> str:
    """Patterns of all files with the endings of some."""
    patterns = [f"**/*{ending}" for ending in sorted({os.path.splitext(file)[1] for file in files})]
    return patterns[0] if len(patterns) == 1 else json.dumps(patterns)


def _check_splits(name: str, resolved: Resolved) -> None:
    """Images in two splits."""
    seen: dict[str, str] = {}
    twice = [
        (file, seen[file], split)
        for split, files in resolved.splits.items()
        for file in files
        if _seen(seen, file, split)
    ]
    if not twice:
        return
    file, first, second = twice[0]
    tops = {first: _split_folder(file, first), second: _split_folder(file, second)}
    outer = min(tops, key=lambda split: len(tops[split]))
    raise UserError(
        f"`{name}` can be read in two ways: `datasets` takes {len(twice)} images such as `{file}` into both splits "
        f"`{first}` and `{second}`; by their outer folder they are `{outer}` alone. Say which files a split has, such "
        f"as --data_files '{json.dumps({outer: f'{tops[outer]}/**'})}', or name a folder by `--data_dir`."
    )


def _seen(seen: dict[str, str], file: str, split: str) -> bool:
    return not _is_metadata(file) and seen.setdefault(file, split) != split


def _check_lost(name: str, resolved: Resolved) -> None:
    """Images that belong to no split, where that is not plainly meant."""
    lost = resolved.in_no_split
    kept = [(split, file) for split, files in resolved.splits.items() for file in files if not _is_metadata(file)]
    if not lost:
        return
    images = resolved.module == "imagefolder"
    if resolved.found_by == "files":
        doubtful = len(lost) > len(kept) or (images and len(resolved.splits) == 1)
    else:
        inner = {_split_folder(file, split) for split, file in kept}
        exact = all(os.path.basename(folder) in _WORDS for folder in inner)
        siblings = {
            os.path.dirname(folder) for folder in inner if folder in {os.path.dirname(file) for _, file in kept}
        }
        beside = any(os.path.dirname(os.path.dirname(file)) in siblings and "/" in file for file in lost)
        if len(resolved.splits) > 1:  # `train` and `test` beside `unlabeled`
            doubtful = not exact and len(lost) > len(kept)
        else:
            doubtful = len(lost) > len(kept) or (images and beside)
    if not doubtful:
        return
    splits = ", ".join(
        f"split `{split}` with {_files(_number(files), resolved)}" for split, files in resolved.splits.items()
    )
    chosen = {split: _patterns(resolved, split) for split in resolved.splits}
    everything = f"{len(lost) + len(kept):,} images" if images else _files(len(lost) + len(kept))
    raise UserError(
        f"`{name}` can be read in two ways: as `datasets` does, by names of {resolved.found_by}, {splits}, without "
        f"the other {_files(len(lost), resolved)} ({_places(lost)}), by --data_files '{json.dumps(chosen)}'; or all "
        f"{everything} as the split `train`, where folders are classes, by --data_files '**'. Choose one."
    )


def _check_classes(name: str, resolved: Resolved, classes: Classes) -> None:
    """Folders named after splits that became classes, or below folders that would be the classes."""
    deepest = {os.path.dirname(file) for files in resolved.splits.values() for file in files}
    names = {os.path.basename(folder) for folder in deepest}
    kinds = {split_named(one, any_case=True) for one in names}
    if None in kinds or len(kinds) < 2:
        return
    number = sum(map(len, resolved.splits.values()))
    splits = {split: [] for split in sorted(filter(None, kinds))}
    for folder in sorted(names):
        splits[str(split_named(folder, any_case=True))].append(f"**/{folder}/**")
    pattern = json.dumps({split: one if len(one) > 1 else one[0] for split, one in splits.items()})
    if resolved.found_by != "folders":
        counts = Counter(os.path.basename(os.path.dirname(f)) for files in resolved.splits.values() for f in files)
        named = ", ".join(f"`{one}` ({count} images)" for one, count in sorted(counts.items()))
        raise UserError(
            f"`{name}` can be read in two ways: as `datasets` does, one split `train` of {number:,} images with the "
            f"classes {named}, by --data_files '**'; or with the splits {', '.join(splits)}, by --data_files "
            f"'{pattern}' --drop_labels true. Choose one."
        )
    above = {os.path.basename(os.path.dirname(folder)) for folder in deepest}
    if len(above) < 2:
        return
    counts = ", ".join(f"`{split}` ({len(files):,} images)" for split, files in resolved.splits.items())
    raise UserError(
        f"`{name}` can be read in two ways: with the splits {counts} and no classes, by --drop_labels true; or, as "
        f"`datasets` does, with the names of these splits as the classes {_listed(sorted(names))}, by --drop_labels "
        f"false. For the classes {_listed(sorted(above))}, move the folders so that each split holds its classes "
        f"(`train/{min(above)}`). Choose one."
    )


def _split_folder(file: str, split: str) -> str:
    """The innermost folder of a file that is named after its split."""
    parts = file.split("/")[:-1]
    for depth in range(len(parts), 0, -1):
        if split in {_WORDS.get(part) for part in _SEPARATORS.split(parts[depth - 1])}:
            return "/".join(parts[:depth])
    return os.path.dirname(file)


def _patterns(resolved: Resolved, split: str) -> str | list[str]:
    """Patterns that choose the files of a split again."""
    files = resolved.splits[split]
    folders = sorted({_split_folder(file, split) for file in files})
    if resolved.found_by == "folders" and len(folders) <= _SHOWN:
        found = [f"{folder}/**" for folder in folders]
    else:
        by_name = resolved.found_by == "files"
        table = DEFAULT_PATTERNS_SPLIT_IN_FILENAME if by_name else DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME
        found = [one for one in table[Split(split)] if any(map(re.compile(glob_translate(one)).match, files))]
    return found[0] if len(found) == 1 else found


def understood(name: str, resolved: Resolved, classes: Classes | None) -> str:
    """One line: splits and classes with counts, what is in no split, and what was left out, by reason."""
    splits = ", ".join(f"{split} ({_files(_number(files), resolved)})" for split, files in resolved.splits.items())
    parts = [f"`{name}` is read as {_format(resolved)}: split{'s' * (len(resolved.splits) > 1)} {splits}"]
    if classes is not None:
        parts[0] += "; " + _classes_text(resolved, classes)
    if resolved.found_by == "all":
        folders = {part for files in resolved.splits.values() for file in files for part in file.split("/")[:-1]}
        upper = sorted(one for one in folders if split_named(one, any_case=True) and not split_named(one))
        if upper:
            parts.append(
                f"The folders {_listed(upper)} are no splits, whose names are in lower case; `--data_files` makes "
                "them splits."
            )
    if resolved.in_no_split:
        parts.append(in_no_split(resolved))
    used = {file for files in resolved.splits.values() for file in files if _is_metadata(file)}
    unused = [file for file in resolved.listing.sizes if _is_metadata(file) and file not in used]
    if unused and resolved.module == "imagefolder":
        parts.append(f"Not read, since they are in no split: {_listed(unused)}.")
    if resolved.repeated:
        parts.append(f"{_files(resolved.repeated, resolved)} that two patterns of a split match count once.")
    if resolved.module != "imagefolder" and any(map(is_image, resolved.aside)):
        parts.append(f"Not read: {sum(map(is_image, resolved.aside))} images beside the {resolved.module} files.")
    tables = [file for file in resolved.aside if format_of(file) in ("csv", "json") and not _is_metadata(file)]
    if resolved.module == "imagefolder" and tables:
        what = "tables" if len(tables) > 1 else "table"
        how = f"`--data_files '{tables[0]}'` reads images that it names"
        parts.append(f"Not read: the {what} {_listed(tables)}; {how}.")
    left_out = counted(left_out_of(resolved))
    if left_out:
        parts.append(f"Left out: {left_out}.{help_for(left_out)}")
    parts[0] = parts[0].rstrip(".") + "."
    return " ".join(parts)


def in_no_split(resolved: Resolved) -> str:
    """How many files belong to no split, and how to add them; empty if there are none."""
    lost = resolved.in_no_split
    if not lost:
        return ""
    example = json.dumps({"train": f"{lost[0].split('/')[0]}/**" if "/" in lost[0] else lost[0]})
    return (
        f"In no split: {_files(len(lost), resolved)} ({_places(lost)}); `--data_files` adds them, such as '{example}'."
    )


def left_out_of(resolved: Resolved) -> dict[str, int]:
    """What cannot be read, by reason; pictures beside tables or archives do not belong to the data."""
    unsupported = resolved.listing.unsupported if resolved.module == "imagefolder" else {}
    return resolved.listing.unreadable | unsupported


def _classes_text(resolved: Resolved, classes: Classes) -> str:
    if not classes.names:
        return f"no classes ({classes.reason})"
    counts = Counter(one for own in classes.of.values() if own is not None for one in own)
    shown = ", ".join(f"{one} ({counts[one]:,})" for one in classes.names[:_SHOWN])
    more = f" and {len(classes.names) - _SHOWN:,} more" * (len(classes.names) > _SHOWN)
    return f"{len(classes.names):,} classes: {shown}{more}"


def _number(files: list[str]) -> int:
    return sum(not _is_metadata(file) for file in files)


def _is_metadata(file: str) -> bool:
    return os.path.basename(file) in _ALL_METADATA_FILENAMES


def _format(resolved: Resolved) -> str:
    return {"imagefolder": "a folder of images", "webdataset": "webdataset tars"}.get(
        resolved.module, f"{resolved.module} files"
    )


def _files(number: int, resolved: Resolved | None = None) -> str:
    if (
        resolved is not None
        and resolved.module == "imagefolder"
        and not any(file.endswith(".zip") for files in resolved.splits.values() for file in files)
    ):
        return f"{number:,} image{'s' * (number != 1)}"
    return f"{number:,} file{'s' * (number != 1)}"


def _places(files: list[str]) -> str:
    """The folders of files, or the files where they lie in none."""
    places = Counter(os.path.dirname(file) or file for file in files)
    shown = ", ".join(f"`{place}`" for place in list(places)[:3])
    return shown + f" and {len(places) - 3} more" * (len(places) > 3)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + " ..." * (len(names) > _SHOWN)
