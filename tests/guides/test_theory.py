"""Numbers of the guide to theory: each row of its tables is what the results files say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "model_cards" / "results"


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows_of(first: str) -> list[list[str]]:
    """Cells of the table whose first heading is given and which is the only one with its next."""
    text = (ROOT / "scripts" / "guides" / "theory.md").read_text(encoding="utf-8")
    table = text[text.index(first) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_of_targets():
    found = results("curriculum")
    rows = rows_of("| target | turns by the equations")
    assert len(rows) == len(found["targets"])
    place = found["steps"].index(30)
    for row, one in zip(rows, found["targets"].values(), strict=True):
        said, measured = one["theory"], one["measured"]
        turns = [f"{min(each['turning_steps'])} to {max(each['turning_steps'])}" for each in (said, measured)]
        cosines = (measured["cosine"][place], measured["cosine"][-1])
        assert row[1:] == [*turns, f"{one['order']:.2f}", *(f"{value:.2f}" for value in cosines)]
    assert found["holds"] == {"order": False, "alignment": True}


def test_the_table_of_an_encoder_under_recipes():
    each = results("analysis-augmentation")["encoders"]["seed0"]
    rows = rows_of("| recipe | share of augmentation")
    assert [row[0].strip("`") for row in rows] == list(each["augmentation"])
    for row, one in zip(rows, each["augmentation"].values(), strict=True):
        numbers = one["numbers"]
        accuracies = (f"{100 * numbers[name]:.1f}" for name in ("knn", "knn_kept", "knn_dominated"))
        shares = f"{numbers['augmentation_share']:.2f}", f"{numbers['dominated_variance']:.2f}"
        dominated = f"{numbers['dominated']} of {numbers['directions']}"
        assert row[1:] == [shares[0], dominated, shares[1], str(numbers["lost_by_theorem"]), *accuracies]
    counts = [one["numbers"]["lost_by_softmax"] for one in each["augmentation"].values()]
    text = " ".join((ROOT / "scripts" / "guides" / "theory.md").read_text(encoding="utf-8").split())
    assert "counts {}, {} and {} negative eigenvalues".format(*counts) in text


@pytest.mark.parametrize(
    ("start", "name"), [("fresh", "augmentation"), ("DirectPred", "augmentation-from-directpred")]
)
def test_the_table_of_what_training_lost(start: str, name: str):
    one = results(name)["seeds"][0]
    rows = [row for row in rows_of("| start | recipe | mean share") if row[0] == start]
    assert [row[1].strip("`") for row in rows] == list(one["runs"])
    for row, (recipe, measured) in zip(rows, one["runs"].items(), strict=True):
        said, score = one["predictions"][recipe], one["scores"]["by_recipe"][recipe]
        values = (score["mean_loss"], score["share_and_loss"], score["variance_and_loss"])
        assert row[2:] == [
            f"{sum(said['shares']) / len(said['shares']):.2f}",
            f"{said['lost_by_theorem']} of {one['directions']}",
            *(f"{value:.2f}" for value in values),
            f"{100 * measured['knn']:.1f}",
        ]
    assert not any(one["scores"]["claims"].values())


@pytest.mark.parametrize("name", ["augmentation", "augmentation-from-directpred", "curriculum"])
def test_what_was_said_before_the_runs_is_what_they_are_judged_by(name: str):
    said, found = results(f"{name}-predictions"), results(name)
    assert said["claims"] == found["claims"]
    if name == "curriculum":
        assert {target: one["theory"] for target, one in said["targets"].items()} == {
            target: one["theory"] for target, one in found["targets"].items()
        }
        return
    for before, after in zip(said["seeds"], found["seeds"], strict=True):
        assert before["predictions"] == after["predictions"] and before["variances"] == after["variances"]


def test_every_number_in_the_text_about_recipes_is_in_the_files():
    text = (ROOT / "scripts" / "guides" / "theory.md").read_text(encoding="utf-8")
    fresh, trained = (
        results(name)["seeds"][0]["scores"]["differences"] for name in ("augmentation", "augmentation-from-directpred")
    )
    for values in (fresh, trained):
        for value in values.values():
            shown = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            assert re.search(rf"(?<!\d){shown}(?!\d)", text), shown


def test_the_theorem_in_its_own_setting():
    layers = [
        layer
        for name in ("augmentation", "augmentation-from-directpred")
        for pairs in results(name)["seeds"][0]["linear_layer"].values()
        for layer in pairs.values()
    ]
    assert len(layers) == 12
    correlations = [layer["rank_correlation"] for layer in layers]
    signs = [layer["agree"] for layer in layers]
    text = " ".join((ROOT / "scripts" / "guides" / "theory.md").read_text(encoding="utf-8").split())
    assert f"growth is {min(correlations):.2f} to {max(correlations):.2f}" in text
    assert f"right in {100 * min(signs):.0f} to {100 * max(signs):.0f} %" in text
    grown = [
        1 - layer["shrunk"] / len(seed["variances"])
        for name in ("augmentation", "augmentation-from-directpred")
        for seed in [results(name)["seeds"][0]]
        for pairs in seed["linear_layer"].values()
        for layer in pairs.values()
    ]
    assert f"would be right in {100 * min(grown):.0f} to {100 * max(grown):.0f} %." in text
    image = [
        (pairs["image_and_view"]["negative"], pairs["image_and_view"]["shrunk"])
        for name in ("augmentation", "augmentation-from-directpred")
        for pairs in results(name)["seeds"][0]["linear_layer"].values()
    ]
    lost, shrunk = zip(*image, strict=True)
    assert f"of the {min(lost)} to {max(lost)} directions that X calls lost" in text
    assert f"{min(shrunk)} to {max(shrunk)} shrank in 200 steps" in text


def test_the_spectrum_tells_better_by_little():
    text = " ".join((ROOT / "scripts" / "guides" / "theory.md").read_text(encoding="utf-8").split())
    better = [
        score["variance_and_loss"] - score["share_and_loss"]
        for name in ("augmentation", "augmentation-from-directpred")
        for score in results(name)["seeds"][0]["scores"]["by_recipe"].values()
    ]
    assert f"if only by {min(better):.2f} to {max(better):.2f}, for" in text


def test_one_direction_of_z_grows_and_the_others_stay():
    text = " ".join((ROOT / "scripts" / "guides" / "theory.md").read_text(encoding="utf-8").split())
    runs = [one for one in results("ablation/fresh_cifar-2")["runs"] if one["measured"]["looks"]]
    assert len(runs) == 8 and {one["cell"]["weight_decay"] for one in runs} == {0.004}
    start = [one["start"]["eigenvalues"] for one in runs]
    early, late = ([one["measured"]["looks"][place] for one in runs] for place in (0, -1))
    assert {look["step"] for look in early} == {20} and {look["step"] for look in late} == {400}

    def ends(values, place: int) -> tuple[str, str]:
        found = [one[place] for one in values]
        return f"{min(found):.1f}", f"{max(found):.1f}"

    early, late = ([look["eigenvalues"] for look in looks] for looks in (early, late))
    largest = [f"{float(end):.0f}" for end in ends(early, 0)]
    assert "of z goes from {} or {} to between {} and {}".format(*ends(start, 0), *largest) in text
    assert "the second from {} or {} to between {} and {}.".format(*ends(start, 1), *ends(early, 1)) in text
    assert "first two are {} to {} and {} to {}.".format(*ends(late, 0), *ends(late, 1)) in text


def test_directions_that_turn_mostly_fall():
    text = " ".join((ROOT / "scripts" / "guides" / "theory.md").read_text(encoding="utf-8").split())
    rising: dict[str, dict[str, list[int]]] = {}
    for target, one in results("curriculum")["targets"].items():
        for kind in ("theory", "measured"):
            first, last = one[kind]["s"][0], one[kind]["s"][-1]
            turns = zip(one[kind]["turning_steps"], first, last, strict=True)
            rising.setdefault(kind, {})[target] = [step for step, before, after in turns if after > before]
    assert {len(steps) for steps in rising["theory"].values()} == {11} and "where eleven do by the equations" in text
    measured = rising["measured"]
    assert len(measured.pop("none")) == 4 and {len(steps) for steps in measured.values()} == {5}
    assert "only four end above their start without a moving average and five with one" in text
    assert max(measured["0.9"]) == 40 and max(measured["0.99"]) == 130
    assert "the last turns at step 30 without, at 40 with m = 0.9 and at 130 with m = 0.99" in text
    theory = results("curriculum")["targets"]["0.99"]["theory"]["cosine"]
    assert f"the equations give {theory[3]:.2f}; they reach {theory[-1]:.2f} at the end" in text
