"""Measure a frozen encoder on labelled images: weighted k-NN, linear probes and clustering.

    python scripts/evaluate.py runs/first --dataset shapes --label_column all --baselines raw random
    python scripts/evaluate.py org/directpred-r50 --dataset uoft-cs/cifar10 knn
    python scripts/evaluate.py resnet50.a1_in1k --dataset photos --split validation linear
    python scripts/evaluate.py runs/clusters --dataset uoft-cs/cifar10 clustering

ENCODER is the folder of a run, an encoder folder, a repo on the Hub (timm or transformers) or a timm name.
Numbers for a local folder are added to its results.json, its model card and its figures. `clustering` compares
clusters of the scored split with its labels: those of the run's own method, which are written to assignments.parquet,
or, where the method has none, those that k-means finds in the features.

`linear-sgd` (MoCo) and `linear-byol` are trained on random crops and flips in their papers. `--augmented_passes 100`
does that, exactly: the encoder is frozen, so its features of 100 augmented passes over the training split, one for
each epoch, are computed first (80 are enough for `linear-byol`). Fewer passes are used again in later epochs.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForPreTraining

from hf_ssl.cli import errors_for_users, near_name, parse_flags, show_log
from hf_ssl.data.sources import Source, open_source
from hf_ssl.evaluation.clustering import write_assignments
from hf_ssl.evaluation.features import (
    Encoder,
    Features,
    encoder_folder,
    extract_augmented_features,
    extract_features,
    load_encoder,
)
from hf_ssl.evaluation.portrait import take_portrait
from hf_ssl.evaluation.protocols import (
    AUGMENTED,
    BEST_EPOCH,
    PROTOCOLS,
    Measurement,
    check_protocol,
    measure,
    metric_of,
    most_frequent_class_accuracy,
    title_of,
    with_classes_of,
)
from hf_ssl.evaluation.results import Table, table_text, update_results
from hf_ssl.figures.accuracy import accuracy_bars
from hf_ssl.hub.embedding import SHOWN_BY_DEFAULT, write_embedding
from hf_ssl.hub.model_card import write_model_card
from hf_ssl.methods import METHODS

BASELINES = {"raw": "raw pixels", "random": "random encoder"}


def main(arguments: list[str]) -> int:
    """Parse, measure, print and keep; returns the exit code."""
    options = _parse(arguments)
    folder = encoder_folder(options.encoder)
    train_source, test_source, labels = _open(options)
    title = _title_of(options.encoder, folder)
    measured, chance, assigned = _measure(options, title, train_source, test_source, labels)

    table: Table = {}
    for name, measurements in measured.items():
        for one in measurements:
            table.setdefault(one.protocol, {}).setdefault(name, {})[one.label] = one.value
    print(f"\n{_heading(options, measured[title])}\n")
    print(table_text(table, chance))
    if folder is not None or options.output:
        _keep(options, folder, _entries(options, arguments, measured, chance), table, chance, assigned)
    if folder is not None and not options.output and (folder / "run.json").is_file():
        _portray(options, folder, test_source)
        print(f"Card:    {write_model_card(folder)}")
    if options.show_loading and folder is not None:
        print(_how_to_load(folder))
    return 0


def _heading(options: argparse.Namespace, measurements: list[Measurement]) -> str:
    scored = f"{measurements[0].num_images:,} images of split {options.split}"
    learnt = [one.settings["train_images"] for one in measurements if "train_images" in one.settings]
    if not learnt:
        return f"{options.dataset}: clusters (%) of {scored}"
    training = f"{learnt[0]:,} labelled images of split {options.train_split}"
    what = "accuracy" if all(metric_of(one.protocol) == "accuracy" for one in measurements) else "scores"
    return f"{options.dataset}: {what} (%) on {scored}, from {training}"


class _Assign(nn.Module):
    """A method that has clusters of its own, as an encoder whose features are their probabilities."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.method.assign(pixel_values)  # pyright: ignore[reportCallIssue]


def _assignments(options: argparse.Namespace, encoder: Encoder, source: Source, device: str) -> Features | None:
    """Cluster probabilities of every image, if the encoder is of a run whose method assigns images to clusters."""
    folder = encoder_folder(options.encoder)
    pretraining = folder.parent / "pretraining" if folder is not None and folder.name == "encoder" else None
    if pretraining is None or not (pretraining / "config.json").is_file():
        return None
    model_type = json.loads((pretraining / "config.json").read_text())["model_type"]
    if not hasattr(METHODS.get(model_type.removeprefix("hf_ssl_")), "assign"):
        return None
    method = AutoModelForPreTraining.from_pretrained(pretraining).to(device)
    clusters = Encoder(_Assign(method), encoder.transform, method.config.num_clusters, "clusters")
    return _extract(options, clusters, source, "clusters")


def _extract(options: argparse.Namespace, encoder: Encoder, source: Source, shown: str) -> Features:
    return extract_features(
        encoder,
        source,
        options.batch_size,
        options.num_workers,
        max_images=options.max_images,
        bf16=options.bf16,
        description=f"{shown}, {source.split}",
    )


def _extract_augmented(options: argparse.Namespace, encoder: Encoder, source: Source, shown: str) -> Tensor | None:
    if options.augmented_passes == 0:
        return None
    return extract_augmented_features(
        encoder,
        source,
        options.augmented_passes,
        options.batch_size,
        options.num_workers,
        seed=options.seed,
        max_images=options.max_images,
        bf16=options.bf16,
        description=f"{shown}, {source.split}, {options.augmented_passes} augmented passes",
    )


def _measure(
    options: argparse.Namespace, title: str, train_source: Source, test_source: Source, labels: list[str]
) -> tuple[dict[str, list[Measurement]], dict[str, float], Features | None]:
    """Numbers of the baselines and, last, of the encoder; the chance level of each label column; own clusters."""
    names = {f"{baseline}:{options.encoder}": BASELINES[baseline] for baseline in options.baselines}
    names[options.encoder] = title
    device = _device(options)
    # The encoder itself first: if it cannot be loaded, that is what to tell.
    encoders = {name: load_encoder(name, device, options.seed) for name in reversed(names)}
    measured: dict[str, list[Measurement]] = {}
    chance: dict[str, float] = {}
    assigned = None
    for name, shown in names.items():
        # First: what may be too much for the memory.
        augmented = _extract_augmented(options, encoders[name], train_source, shown)
        test = _extract(options, encoders[name], test_source, shown)
        train = test if train_source is test_source else _extract(options, encoders[name], train_source, shown)
        test = with_classes_of(test, test_source.labels, train_source.labels)
        if "knn" in options.protocols and options.k > len(train.row_ids) and shown == title:
            print(f"Note: k-NN uses all {len(train.row_ids):,} training images, fewer than `--k` {options.k}.")
        if "clustering" in options.protocols and shown == title:
            assigned = _assignments(options, encoders[name], test_source, device)
        measured[shown] = measure(
            train,
            test,
            labels,
            options.protocols,
            k=options.k,
            temperature=options.temperature,
            seed=options.seed,
            probabilities=None if assigned is None else assigned.features,
            augmented=augmented,
        )
        chance = {label: most_frequent_class_accuracy(train, test, label) for label in labels}
    return measured, chance, assigned


def _device(options: argparse.Namespace) -> str:
    return options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _title_of(encoder: str, folder: Path | None) -> str:
    """What tables and figures call the encoder: of a local one its run's name, not its path."""
    if folder is None:
        return encoder
    folder = folder.resolve()
    return folder.parent.name if folder.name == "encoder" else folder.name


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("encoder", metavar="ENCODER", help="folder, Hub repo or timm name")
    known = ", ".join(PROTOCOLS)
    parser.add_argument("protocols", nargs="*", metavar="PROTOCOL", help=f"any of {known}; default: knn linear")
    parser.add_argument("--dataset", required=True, help="shapes, digits, folder, parquet or tar file, Hub id")
    parser.add_argument("--dataset_config", help="config of a Hub data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--split", default="test", help="split that is scored (default: test)")
    parser.add_argument(
        "--train_split", default="train", help="split that the labels are learnt from (default: train)"
    )
    parser.add_argument("--image_column", help="column of the images; found by its type otherwise")
    parser.add_argument("--label_column", help="label column, or `all`; default: the main one")
    parser.add_argument("--baselines", nargs="+", default=[], metavar="NAME", help="raw and random, to compare with")
    parser.add_argument("--k", type=int, default=200, help="neighbours of k-NN (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.1, help="temperature of k-NN (default: 0.1)")
    parser.add_argument(
        "--augmented_passes",
        type=int,
        default=0,
        metavar="N",
        help="train linear-sgd and linear-byol on random crops and flips, from features of N passes over the training "
        "split; costs N times its feature extraction and 2 N bytes of memory an image and feature; exact for N = 100 "
        "(linear-byol: 80), else epochs use passes again (default: 0, no augmentation)",
    )
    parser.add_argument("--max_images", type=int, help="use only the first so many images of each split")
    parser.add_argument("--batch_size", type=int, default=256, help="images in a forward pass (default: 256)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    parser.add_argument("--bf16", action="store_true", help="compute features in bfloat16, on CUDA")
    parser.add_argument("--seed", type=int, default=0, help="seed of probes and random baseline (default: 0)")
    parser.add_argument("--output", type=Path, help="results file, instead of results.json in the encoder folder")
    parser.add_argument(
        "--gallery",
        action=argparse.BooleanOptionalAction,
        help="show images of the split beside their nearest neighbours on the model card, which is published with the "
        "encoder (default: only those of shapes and digits)",
    )
    parser.add_argument(
        "--show_loading",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end with the lines that load a local encoder",
    )
    options = parse_flags(parser, arguments)
    # `--baselines raw random knn` takes every word that follows it.
    options.protocols += [word for word in options.baselines if word in PROTOCOLS]
    options.protocols = list(dict.fromkeys(options.protocols or ["knn", "linear"]))
    options.baselines = list(dict.fromkeys(word for word in options.baselines if word not in PROTOCOLS))
    for protocol in options.protocols:
        check_protocol(protocol)
    for baseline in options.baselines:
        if baseline not in BASELINES:
            hint = near_name(baseline, [*BASELINES, *PROTOCOLS])
            raise ValueError(f"Unknown baseline `{baseline}`. Known: {', '.join(BASELINES)}.{hint}")
    for name, least in {"k": 1, "max_images": 1, "batch_size": 1, "num_workers": 0, "seed": 0}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"`--{name}` must be at least {least}, got {value}.")
    _check_augmented_passes(options)
    if options.temperature <= 0:
        raise ValueError(f"`--temperature` must be positive, got {options.temperature}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a CUDA device, but PyTorch sees none. Leave it out.")
    if options.split == options.train_split and not _only_clusters(options):
        raise ValueError(
            f"`--split` and `--train_split` are both `{options.split}`: score an encoder on other images than those "
            "that its probe learns from."
        )
    return options


def _check_augmented_passes(options: argparse.Namespace) -> None:
    number = options.augmented_passes
    if number < 0:
        raise ValueError(f"`--augmented_passes` must be at least 0, got {number}.")
    epochs = {protocol: AUGMENTED[protocol] for protocol in options.protocols if protocol in AUGMENTED}
    if number and not epochs:
        raise ValueError(
            f"`--augmented_passes` is for {' and '.join(AUGMENTED)}, not for {', '.join(options.protocols)}. "
            "Add one of them, or leave it out."
        )
    if number and number > max(epochs.values()):
        longest = max(epochs, key=lambda protocol: epochs[protocol])
        raise ValueError(
            f"`--augmented_passes` must be at most {epochs[longest]}, the epochs of {longest}, got {number}: no epoch "
            "would use the others."
        )


def _only_clusters(options: argparse.Namespace) -> bool:
    """Whether nothing is learnt from labels, so that the training split is not needed."""
    return options.protocols == ["clustering"]


def _open(options: argparse.Namespace) -> tuple[Source, Source, list[str]]:
    """Both splits, which are one object where the training split is not needed, and the label columns to measure."""
    column = None if options.label_column == "all" else options.label_column
    splits = [options.split] if _only_clusters(options) else [options.train_split, options.split]
    sources = [
        open_source(
            options.dataset,
            config=options.dataset_config,
            split=split,
            revision=options.dataset_revision,
            image_column=options.image_column,
            label_column=column,
        )
        for split in splits
    ]
    train, test = sources[0], sources[-1]
    for source in (train, test):
        if not source.labels:
            raise ValueError(
                f"Evaluation needs labels, but split `{source.split}` of `{options.dataset}` has no label column. "
                "Give `--label_column`, or use scripts/extract_features.py, which needs none."
            )
    labels = [label for label in test.labels if label in train.labels]
    if not labels or (column is not None and column not in labels):
        raise ValueError(
            f"The splits share no label column: `{train.split}` has {', '.join(train.labels)}, `{test.split}` has "
            f"{', '.join(test.labels)}. Choose other splits."
        )
    if options.label_column != "all":
        labels = [column] if column else labels[:1]
    return train, test, labels


def _entries(
    options: argparse.Namespace,
    arguments: list[str],
    measured: dict[str, list[Measurement]],
    chance: dict[str, float],
) -> list[dict[str, Any]]:
    """What goes into `results.json`: the encoder's numbers, beside each what its baselines reached."""
    *others, own = measured
    baseline_names = {shown: name for name, shown in BASELINES.items()}
    return [
        {
            "dataset": options.dataset,
            "dataset_config": options.dataset_config,
            "split": options.split,
            "train_split": options.train_split if "train_images" in one.settings else None,
            "label": one.label,
            "protocol": one.protocol,
            "metric": metric_of(one.protocol),
            "value": one.value,
            "settings": one.settings,
            "baselines": {
                **({"most_frequent_class": chance[one.label]} if metric_of(one.protocol) == "accuracy" else {}),
                **{baseline_names[shown]: measured[shown][place].value for shown in others},
            },
            "command": shlex.join(["python", "scripts/evaluate.py", *arguments]),
            "num_images": one.num_images,
        }
        for place, one in enumerate(measured[own])
    ]


def _keep(
    options: argparse.Namespace,
    folder: Path | None,
    entries: list[dict[str, Any]],
    table: Table,
    chance: dict[str, float],
    assigned: Features | None,
) -> None:
    """Write the results, the figure and the clusters."""
    slug = re.sub(r"[^\w-]+", "-", Path(options.dataset).name).strip("-") or "data"
    if options.output or folder is None:
        results = options.output
        figure_path = results.with_suffix(".png")
        assignments = results.with_suffix(".parquet")
    else:
        results = folder / "results.json"
        figure_path = folder / "figures" / f"evaluation-{slug}.png"
        assignments = folder / "assignments.parquet"
    update_results(results, entries)
    if assigned is not None:
        about = {"dataset": options.dataset, "dataset_config": options.dataset_config or "", "split": options.split}
        write_assignments(assignments, assigned.row_ids, assigned.features, about)
        print(f"Clusters: {assignments}")
    drawn = [one for one in table if metric_of(one) == "accuracy" and not one.endswith(BEST_EPOCH)]
    titles = {one: title_of(one) for one in drawn}
    if len(chance) == 1:
        (label,) = chance
        encoders = list(next(iter(table.values())))
        panels = {label: {name: {titles[p]: table[p][name][label] for p in titles} for name in encoders}}
        levels = {label: dict.fromkeys(titles.values(), chance[label])}
    else:
        panels = {title: table[protocol] for protocol, title in titles.items()}
        levels = dict.fromkeys(panels, chance)
    figure_path.parent.mkdir(parents=True, exist_ok=True)
    accuracy_bars(panels, levels, f"Frozen encoder on {Path(options.dataset).name}, split {options.split}").savefig(
        figure_path
    )
    print(f"Results: {results}\nFigure:  {figure_path}")


def _portray(options: argparse.Namespace, folder: Path, source: Source) -> None:
    """Numbers and pictures of the features of the scored split, for the model card."""
    names = {BASELINES[baseline]: f"{baseline}:{options.encoder}" for baseline in options.baselines}
    names["this encoder"] = options.encoder
    encoders = {shown: load_encoder(name, _device(options), options.seed) for shown, name in names.items()}
    gallery = options.dataset in SHOWN_BY_DEFAULT if options.gallery is None else options.gallery
    portrait = take_portrait(encoders, source, options.batch_size, options.num_workers, gallery=gallery)
    about = {"dataset": options.dataset, "dataset_config": options.dataset_config, "split": options.split}
    write_embedding(folder, portrait, about)


def _how_to_load(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    if "pretrained_cfg" not in config or "model_type" not in config:
        return ""
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    return (
        f"\nThe encoder is in {folder}. To load it, without hf_ssl:\n\n"
        f"    from transformers import AutoImageProcessor, AutoModel\n"
        f'    processor = AutoImageProcessor.from_pretrained("{folder}"{trust})\n'
        f'    model = AutoModel.from_pretrained("{folder}"{trust})\n'
        f'    features = model(**processor(image.convert("RGB"), return_tensors="pt")).pooler_output\n'
    )


if __name__ == "__main__":
    with errors_for_users():
        show_log()
        sys.exit(main(sys.argv[1:]))
