"""The study of augmentation in lines of text and as figures."""

from pathlib import Path
from typing import Any

from hf_ssl.figures.augmentation import augmentation_spectra, lost_directions
from hf_ssl.studies.augmentation_measures import CLAIMS


def text_of(one: dict[str, Any]) -> str:
    """The table of one seed and the claims."""
    head = ("recipe", "augmentation", "dominated", "by theorem", "lost", "rank corr.", "variance", "k-NN %", "rank h")
    lines = [f"seed {one['seed']}, {one['directions']} directions", "".join(f"{cell:>13}" for cell in head)]
    for recipe, said in one["predictions"].items():
        share = sum(said["shares"]) / len(said["shares"])
        cells = [recipe, f"{share:.2f}", str(said["dominated"]), str(said["lost_by_theorem"])]
        if recipe in one.get("runs", {}):
            run, score = one["runs"][recipe], one["scores"]["by_recipe"][recipe]
            numbers = (score["mean_loss"], score["share_and_loss"], score["variance_and_loss"])
            knn = "" if run["knn"] is None else f"{100 * run['knn']:.1f}"
            cells += [*(f"{number:.2f}" for number in numbers), knn, f"{run['effective_rank']:.1f}"]
        lines.append("".join(f"{cell:>13}" for cell in cells))
    for recipe, layers in one["linear_layer"].items():
        for pair, layer in layers.items():
            lines.append(
                f"A linear layer on these features, {recipe}, {pair.replace('_', ' ')}: X has {layer['negative']} "
                f"negative eigenvalues, training shrank {layer['shrunk']}; sign as foretold in {layer['agree']:.0%}, "
                f"rank correlation {layer['rank_correlation']:.2f}"
            )
    if "scores" in one:
        pairs = one["scores"]["differences"].items()
        lines += [f"Differences, {pair}: rank correlation {value:.2f}" for pair, value in pairs]
        lines += [f"{'holds' if held else 'FAILS'}: {CLAIMS[name]}" for name, held in one["scores"]["claims"].items()]
    return "\n".join(lines)


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the first seed of a study: what was kept by direction, and the spectra before training.

    Args:
        results: What augmentation.json holds.
        folder: Where to.

    Returns:
        The pictures.
    """
    one = results["seeds"][0]
    figures = {"augmentation.png": lost_directions(one), "spectra.png": augmentation_spectra(one["spectra"])}
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return [folder / name for name in figures]
