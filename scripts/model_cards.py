"""Bring a study of methods or labels into model_cards/: its numbers, the cards of encoders, and tables of results.

    python scripts/model_cards.py runs/methods --name cifar10    # take over a study: results, cards, tables
    python scripts/model_cards.py                                # make the tables anew from model_cards/results
    python scripts/model_cards.py --check                        # only say whether they are what the results say

The numbers lie in model_cards/results/NAME.json, as `hf-ssl study methods`, `hf-ssl study labels`,
`scripts/benchmarks/speed.py` and `scripts/gpu_check.py` write them, without paths of this machine. The tables of
README.md, model_cards/README.md and the guides stand between `<!-- results: KIND NAME -->` and `<!-- end of results
-->` and are written by this script alone; where the numbers of a GPU belong they say that there is none, until there
is. The card of an encoder is that of the first seed.
"""

import argparse
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_ssl.data.sources.opened import kind_by_name
from hf_ssl.errors import UserError
from hf_ssl.evaluation.references import read_json
from hf_ssl.hub.cards import card_to_push
from hf_ssl.hub.model_card import render_model_card
from hf_ssl.private import public_places, without_paths
from hf_ssl.settings import of_json
from hf_ssl.studies.labels import LabelRun
from hf_ssl.studies.labels import table_of as table_of_labels
from hf_ssl.studies.many_runs import mean_text
from hf_ssl.studies.methods_report import (
    RANDOM,
    SUPERVISED,
    VARIANTS,
    MethodRun,
    collapses_of,
    differences_of,
    rows_of,
    title_of,
)
from hf_ssl.training.files import write_json

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

import gpu_table  # noqa: E402  # pyright: ignore[reportMissingImports]
import speed_tables  # noqa: E402  # pyright: ignore[reportMissingImports]

_BLOCK = re.compile(r"(<!-- results: ([^>\n]*) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:results:|end of results)")
_INDEX = "model_cards/README.md"  # has a table of every study
_SHOWN_AS = {"methods": "index", "labels": "labels"}
"""Studies that may be taken over, and which table of the index shows each."""
_IN_README = (RANDOM, "directpred", "byol", "moco_v2", SUPERVISED)
_DEVIATION = "\u00b1 is the standard deviation over seeds"
_COPIES = {
    "cifar10-jpeg75": "CIFAR-10 in a copy of JPEG quality 75, which costs accuracy: compare these numbers with each "
    "other, not with published ones.",
    "imagenette160-jpeg80": "Imagenette in a copy of 160 pixels and JPEG quality 80: compare these numbers with each "
    "other, not with published ones.",
}


def runs_of(results: dict[str, Any]) -> list[MethodRun]:
    """The runs in a results file of `hf-ssl study methods`."""
    return [of_json(MethodRun, one) for one in results["runs"]]


def index_table(results: dict[str, Any], cards: str) -> str:
    """All methods of a study with their cards, what was not run, and how to repeat it.

    Args:
        results: Of the study.
        cards: Where the cards lie, seen from the page, with the beginning of their names.
    """
    runs = runs_of(results)
    lines = ["| encoder | seeds | k-NN (%) | linear probe (%) | card |", "|---|---|---|---|---|"]
    for row in rows_of(runs):
        knn, linear = (mean_text([100 * value for value in values], 1) for values in (row.knn, row.linear))
        method = next(one.method for one in runs if title_of(one.method) == row.title)
        card = f"[card]({cards}{method}.md)" if method in VARIANTS else ""
        lines.append(f"| {row.title} | {len(row.linear)} | {knn} | {linear} | {card} |")
    missing = [title_of(method) for method in (SUPERVISED, *VARIANTS) if method not in {one.method for one in runs}]
    notes = [differences_of(runs).strip()]
    notes += [collapses_of(results["collapses"]).strip()] if results["collapses"] else []
    notes += [f"Not run yet: {'; '.join(missing)}."] if missing else []
    notes += [spread] if (spread := spread_of(runs)) else []
    return "\n".join([*lines, "", setting_of(results), *notes, "", *commands_of(results)])


def setting_of(results: dict[str, Any]) -> str:
    """What was trained on what and how it was measured, in sentences."""
    settings = results["settings"]
    precision = settings["mixed_precision"] or "float32"
    return (
        f"{length_of(results)}; encoder `{results['encoder']}`, {results['num_parameters'] / 1e6:.2f} M parameters; "
        f"each method's recipe `{settings['recipe']}` with views `{settings['view_recipe']}`, {precision}. Frozen, "
        f"measured on {results['test_images']:,} test images with the labels of all training images; no setting was "
        f"chosen for this table. {_COPIES.get(results['dataset'], '')}"
    ).strip()


def length_of(results: dict[str, Any]) -> str:
    """How long each run was, and on what."""
    settings = results["settings"]
    length = f"{settings['num_epochs']:g} epochs" if settings["num_epochs"] else f"{settings['num_steps']:,} steps"
    return f"{length} of {results['train_images']:,} images, {results['image_size']} pixels"


def spread_of(runs: Sequence[MethodRun]) -> str:
    """What stands behind a mean, in words; empty where no row has several seeds."""
    if all(len(row.linear) == 1 for row in rows_of(runs)):
        return ""
    return f"{_DEVIATION}; rows without it are of one seed."


def commands_of(results: dict[str, Any]) -> list[str]:
    """Commands that train what a table has, as a block of code: one for each number of seeds.

    A study may have been made by several commands, each with some of its methods, and some of these may have been
    stopped. Commands that differ in more than methods and seeds are shown as they were.
    """
    bare = {shlex.join(_without(shlex.split(command), "--methods", "--seeds")) for command in results["commands"]}
    commands = results["commands"]
    if len(bare) == 1:
        methods: dict[int, list[str]] = {}
        for method, seeds in Counter(run.method for run in runs_of(results) if run.method != RANDOM).items():
            methods.setdefault(seeds, []).append(method)
        commands = [
            f"{next(iter(bare))} --methods {' '.join(names)}{f' --seeds {seeds}' if seeds > 1 else ''}"
            for seeds, names in sorted(methods.items(), reverse=True)
        ]
    return ["<!-- not run: takes hours -->", "```bash", *commands, "```"]


def _without(words: Sequence[str], *flags: str) -> list[str]:
    """A command's words without some flags and their values."""
    kept, inside = [], False
    for word in words:
        inside = word in flags or (inside and not word.startswith("--"))
        kept += [] if inside else [word]
    return kept


def labels_table(results: dict[str, Any]) -> str:
    """What each share of the labels came to, from each encoder and from scratch, and how to repeat it."""
    settings = results["settings"]
    seeds = len({run["seed"] for run in results["runs"]})
    about = (
        f"Accuracy (%) on {results['test_images']:,} test images after {settings['num_steps']:,} steps of "
        f"{settings['batch_size']} images, the last step counts; {seeds} seed{'s' if seeds > 1 else ''}, each with "
        "labelled images of its own that are the same for every start. `scratch` is the same network with random "
        f"weights. No setting was chosen for this table. {_COPIES.get(results['dataset'], '')}"
    ).strip()
    about += f" {_DEVIATION}." if seeds > 1 else ""
    table = table_of_labels([of_json(LabelRun, one) for one in results["runs"]])
    return "\n".join([table, about, "", "<!-- not run: takes hours -->", "```bash", *results["commands"], "```"])


def readme_table(results: dict[str, Any]) -> str:
    """Five lines for the README, and what they are of in a few words."""
    runs = [one for one in runs_of(results) if one.method in _IN_README]
    lines = ["| encoder | k-NN (%) | linear probe (%) |", "|---|---|---|"]
    for row in rows_of(runs):
        knn, linear = (mean_text([100 * value for value in values], 1) for values in (row.knn, row.linear))
        lines.append(f"| {row.title} | {knn} | {linear} |")
    about = (
        f"A small encoder ({results['num_parameters'] / 1e6:.2f} M parameters) after {length_of(results)}; then "
        f"frozen and measured on {results['test_images']:,} test images. {title_of(RANDOM).capitalize()}: untrained; "
        f"{title_of(SUPERVISED)}: trained with labels. {_COPIES.get(results['dataset'], '')}"
    ).strip()
    return "\n".join([*lines, "", about, *([spread] if (spread := spread_of(runs)) else [])])


def _of_speed(table: Callable[[speed_tables.Parts], str]) -> Callable[[Path, str], str]:
    return lambda cards, name: table(_results(cards, name)["parts"])


def _of_gpu(table: Callable[[Mapping[str, Any]], str], missing: str) -> Callable[[Path, str], str]:
    def made(cards: Path, name: str) -> str:
        if not (cards / "results" / f"{name}.json").is_file():
            return missing
        results = _results(cards, name)
        if results.get("machine", {}).get("device", "CPU") == "CPU":
            raise UserError(f"`{name}.json` must be of a GPU. Remove it, or run `make gpu-check` where one is.")
        return table(results)

    return made


_UNMEASURED = ("gpu gpu_check", "gpu_line gpu_check")
"""Tables whose results may be missing."""
_TABLES: dict[str, Callable[[Path, str], str]] = {
    "index": lambda cards, name: index_table(_results(cards, name), f"{name}-"),
    "guide": lambda cards, name: index_table(_results(cards, name), f"../../model_cards/{name}-"),
    "labels": lambda cards, name: labels_table(_results(cards, name)),
    "short": lambda cards, name: readme_table(_results(cards, name)),
    "gpu": _of_gpu(gpu_table.table, "No GPU has run this code yet, so this page has no GPU numbers."),
    "gpu_line": _of_gpu(gpu_table.in_short, "All of it was measured on CPUs; no GPU has run this code yet."),
    **{kind: _of_speed(table) for kind, table in speed_tables.TABLES.items()},
}


def _results(cards: Path, name: str) -> dict[str, Any]:
    return json.loads((cards / "results" / f"{name}.json").read_text(encoding="utf-8"))


def pages() -> list[Path]:
    """The pages that may have tables."""
    return [ROOT / "README.md", ROOT / "model_cards" / "README.md", *sorted((ROOT / "scripts/guides").glob("*.md"))]


def with_tables(text: str, cards: Path) -> str:
    """A page with its tables made anew.

    Args:
        text: Of the page; a block begins with `<!-- results: index NAME -->` or `<!-- results: short NAME -->`.
        cards: The folder `model_cards`.

    Raises:
        UserError: If a marker is missing, or names no table or results.
    """

    def made(block: re.Match[str]) -> str:
        kind, _, name = block[2].partition(" ")
        there = (cards / "results" / f"{name}.json").is_file() and not kind.startswith("gpu")
        if kind not in _TABLES or not (there or block[2] in _UNMEASURED):
            known = ", ".join(sorted(path.stem for path in (cards / "results").glob("*.json")))
            raise UserError(
                f"`<!-- results: {block[2]} -->` must be one of {', '.join(_TABLES)}, and then the name of results: "
                f"{known}."
            )
        return f"{block[1]}{_TABLES[kind](cards, name)}\n{block[3]}"

    if len(_MARKER.findall(text)) != 2 * len(_BLOCK.findall(text)):
        raise UserError(
            "Each table must stand between `<!-- results: KIND NAME -->` and `<!-- end of results -->`, on lines of "
            "their own, and one of these is missing. Write it again."
        )
    return _BLOCK.sub(made, text)


def check_tables(pages: Mapping[str, str], cards: Path) -> None:
    """Refuse pages from which a table was lost.

    Args:
        pages: Text by name.
        cards: The folder `model_cards`.

    Raises:
        UserError: If a study has no table in the index, or the README shows none.
    """
    results = sorted((cards / "results").glob("*.json"))
    shown = {path.stem: _SHOWN_AS.get(read_json(path).get("study", "")) for path in results}
    needed = [(_INDEX, f"{kind} {name}") for name, kind in shown.items() if kind] + [("README.md", "short ")]
    for page, table in needed:
        if f"<!-- results: {table}" not in pages[page]:
            raise UserError(
                f"`{page}` has no table `{table.strip()}`. Write `<!-- results: {table.strip()} -->` and `<!-- end of "
                "results -->` on two lines where it belongs."
            )


def _results_in(study: Path) -> Path:
    """The file with the numbers of a study."""
    return next((path for name in _SHOWN_AS if (path := study / f"{name}.json").is_file()), study / "methods.json")


def take_over(study: Path, name: str, cards: Path) -> list[Path]:
    """Copy the numbers of a study and, of one of methods, the cards of its encoders.

    Args:
        study: Folder of `hf-ssl study methods` or `labels`.
        name: What the results are called.
        cards: The folder `model_cards`.

    Returns:
        What was written.
    """
    results = cards / "results" / f"{name}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    content = read_json(_results_in(study))
    if kind_by_name(content["dataset"]) != "hub":  # an earlier version told whole paths
        content["settings"] |= public_places(content["settings"])
    write_json(results, without_paths(content))
    written = [results]
    for one in [] if content.get("study") == "labels" else runs_of(_results(cards, name)):
        encoder = study / one.method / f"seed{one.seed}" / "encoder"
        if one.seed == 0 and one.method in VARIANTS:
            card = cards / f"{name}-{one.method}.md"
            shown_as = Path("/", card.stem, "encoder")  # the card shows it without what is above
            text = card_to_push(encoder / "README.md", partial(render_model_card, encoder, shown_as=shown_as))
            card.write_bytes(text if isinstance(text, bytes) else text.read_bytes())
            written.append(card)
    return written


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, help="folder of a finished `hf-ssl study methods` or `labels`")
    parser.add_argument("--name", help="name of its results, such as cifar10")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is not up to date")
    options = parser.parse_args(arguments)
    cards = ROOT / "model_cards"
    if options.study is not None:
        found = _results_in(options.study)
        if not found.is_file():
            files = " or ".join(f"{name}.json" for name in _SHOWN_AS)
            parser.error(f"`{options.study}` has no {files}: give the folder of a finished study.")
        kind = LabelRun if found.stem == "labels" else MethodRun
        try:
            for one in json.loads(found.read_text(encoding="utf-8"))["runs"]:
                of_json(kind, one)
        except (ValueError, KeyError, TypeError) as error:
            parser.error(f"`{found}` is not of a study of {found.stem}: {error}.")
        if options.name is None:
            known = ", ".join(sorted(path.stem for path in (cards / "results").glob("*.json")))
            parser.error(f"`--name` is needed: what the results are called. One that exists is replaced: {known}.")
        if not re.fullmatch(r"[\w-]+", options.name):
            parser.error(f"`--name` must be of letters, digits, - and _, got `{options.name}`.")
        for path in take_over(options.study, options.name, cards):
            print(path.relative_to(ROOT))
    elif options.name is not None:
        parser.error("`--name` is for a study that is taken over. Give its folder, or leave it out.")
    texts, failed = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages()}, False
    try:
        check_tables(texts, cards)
        made = {name: with_tables(text, cards) for name, text in texts.items()}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, new in made.items():
        if new != texts[name]:
            print(name, "is not what the results say" if options.check else "")
            failed |= options.check
            if not options.check:
                (ROOT / name).write_text(new, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
