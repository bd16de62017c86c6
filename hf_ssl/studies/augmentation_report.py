"""The study of augmentation in lines of text and as figures."""

from pathlib import Path
from typing import Any

from hf_ssl.figures.augmentation import augmentation_spectra, lost_directions
from hf_ssl.studies.augmentation_measures import CLAIMS

COLUMNS = {
    "share": "of augmentation in the variance of a direction before training, mean over directions",
    "dominated": "directions in which augmentation varies more than what the views of an image share",
    "by theorem": "directions that theorem 1 loses: negative eigenvalues of X",
    "lost": "1 less the R squared of a direction by a linear map of the trained features, mean over directions",
    "share, lost": "rank correlation of the two over directions",
    "small, lost": "rank correlation of small variance and loss: what one guesses without augmentation",
    "k-NN %": "accuracy of the trained features: the second half of the test images by the first",
    "rank": "effective rank of the trained features",
}
"""Columns of the table, and what they say."""


def text_of(one: dict[str, Any]) -> str:
    """The table of one seed, what its columns say, and the claims."""
    names = list(COLUMNS) if "scores" in one else list(COLUMNS)[:3]
    widest = max(map(len, ("recipe", *one["predictions"])))
    head = "recipe".ljust(widest) + "".join(f"{name:>13}" for name in names)
    lines = [f"seed {one['seed']}, {one['directions']} directions of the features before training", "", head]
    for recipe, said in one["predictions"].items():
        share = sum(said["shares"]) / len(said["shares"])
        cells = [f"{share:.2f}", str(said["dominated"]), str(said["lost_by_theorem"])]
        if "scores" in one:
            run, score = one["runs"][recipe], one["scores"]["by_recipe"][recipe]
            numbers = (score["mean_loss"], score["share_and_loss"], score["variance_and_loss"])
            knn = "" if run["knn"] is None else f"{100 * run['knn']:.1f}"
            cells += [*map(_number, numbers), knn, f"{run['effective_rank']:.1f}"]
        lines.append(recipe.ljust(widest) + "".join(f"{cell:>13}" for cell in cells))
    lines += ["", *(f"{name:<12} {COLUMNS[name]}" for name in names), ""]
    for recipe, layers in one["linear_layer"].items():
        lines += [_text_of_layer(recipe, pair, layer) for pair, layer in layers.items()]
    if "scores" in one:
        for pair, value in one["scores"]["differences"].items():
            told = "none, because one of them does not vary" if value is None else _number(value)
            lines.append(f"Differences of share and loss, {pair}: rank correlation {told}")
        lines += [f"{'holds' if held else 'FAILS'}: {CLAIMS[name]}" for name, held in one["scores"]["claims"].items()]
    return "\n".join([*lines, ""])


def _text_of_layer(recipe: str, pair: str, layer: dict[str, Any]) -> str:
    said = f"A linear layer on these features, {recipe}, {pair.replace('_', ' ')}: "
    said += f"X has {layer['negative']} negative eigenvalues, "
    if layer["agree"] is None:
        return f"{said}training diverged (too few images for so many features)"
    correlation = _number(layer["rank_correlation"])
    said += f"training shrank {layer['shrunk']}; sign as foretold in {layer['agree']:.0%}"
    return said + (f", rank correlation {correlation}" if correlation else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


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
