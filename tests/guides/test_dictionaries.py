"""The guide of dictionaries: its tables are what the results files say, computed a second time."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from hf_ssl.dynamics.staleness import KeyTheory
from hf_ssl.studies.dictionaries_report import read_results
from hf_ssl.studies.dictionaries_runs import Cell, Run, by_cell
from hf_ssl.studies.dictionaries_theory import drift_of_run, predict

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "scripts" / "guides" / "dictionaries.md").read_text(encoding="utf-8")
RESULTS = ROOT / "model_cards" / "results"


def results(name: str) -> dict:
    return json.loads((RESULTS / f"dictionaries-{name}.json").read_text())


def in_groups(name: str) -> list[tuple[dict, list[dict]]]:
    """Each cell of a results file, with what was measured by seed."""
    groups: dict[str, tuple[dict, list[dict]]] = {}
    for run in results(name)["runs"]:
        groups.setdefault(json.dumps(run["cell"]), (run["cell"], []))[1].append(run["measured"])
    return list(groups.values())


def mean_of(runs: list[dict], name: str) -> float:
    return statistics.mean(run[name] for run in runs)


def table(first_cell: str) -> list[list[str]]:
    """Rows of the table whose head begins so, without the line below the head."""
    lines = GUIDE[GUIDE.index(f"\n| {first_cell} |") + 1 :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


@pytest.mark.parametrize(
    ("title", "name"), [("k-NN (%)", "knn"), ("variance that age explains (%)", "stored_age_share")]
)
def test_a_table_of_the_grid_is_what_the_runs_came_to(title: str, name: str):
    head, *rows = table(title)
    sizes = [int(re.sub(r"\D", "", cell)) for cell in head[1:]]
    cells = [(cell, runs) for cell, runs in in_groups("grid") if cell["method"] == "moco"]
    assert {len(runs) for _, runs in cells} == {3}
    # The keys of a queue of one batch have one age.
    cells = [(cell, runs) for cell, runs in cells if all(run[name] is not None for run in runs)]
    found = {(cell["momentum"], cell["queue_size"]): mean_of(runs, name) for cell, runs in cells}
    assert len(rows) == 5 and len(sizes) >= 4
    for momentum, *cells in rows:
        expected = [found[float(momentum.removeprefix("momentum ")), size] for size in sizes]
        assert cells == [f"{100 * value:.1f}" for value in expected]


def test_the_table_of_mechanisms_is_what_the_runs_came_to():
    head, *rows = table("mechanism")
    runs = {}
    for cell, group in in_groups("mechanisms"):
        if cell["method"] == "fresh" or cell["queue_size"] not in (None, 1024):
            continue
        assert len(group) == 3
        name = {
            "end_to_end": f"end to end, one network, batch {cell['batch_size']}",
            "end_to_end-two": f"end to end, two networks, batch {cell['batch_size']}",
            "memory_bank": f"memory bank, {cell['num_images']:,} images",
            "moco": f"queue, momentum {cell['momentum'] or 0:g}",
        }[cell["method"]]
        looks = [look for run in group for look in run["looks"] if look["step"] > run["looks"][-1]["step"] / 2]
        has_age = group[0]["stored_age_share"] is not None
        runs[name] = [f"{100 * mean_of(group, 'knn'):.1f}"]
        runs[name] += [f"{100 * mean_of(group, 'stored_age_share'):.1f}" if has_age else ""]
        runs[name] += [f"{mean_of(looks, key):.0f}" for key in ("negatives", "effective")]
        runs[name] += [f"{mean_of(group, 'dictionary_bytes') / 1e6:.2f}", f"{mean_of(group, 'held_bytes') / 1e6:.1f}"]
    assert head[2] == "oldest keys" and len(rows) == 12
    for name, *cells in rows:
        assert [*cells[:1], *cells[2:]] == runs[name], name


def test_predictions_are_those_that_were_written_before_the_runs():
    early = json.loads((RESULTS / "dictionaries-grid-predictions.json").read_text())
    late = results("grid")["predictions"]
    assert [one["cell"] for one in early["foretold"]] == [one["cell"] for one in late["foretold"]]
    for before, after in zip(early["foretold"], late["foretold"], strict=True):
        assert list(before["keys"].values()) == pytest.approx(list(after["keys"].values()), abs=1e-4)
    assert early["choice"] == late["choice"]


@pytest.mark.parametrize(
    ("name", "kinds"), [("grid", ("r2", "r2_own")), ("settings", ("r2", "r2_own", "r2_own_start"))]
)
def test_scores_are_those_of_the_results(name: str, kinds: tuple[str, ...]):
    score = results(name)["score"]
    for kind in kinds:
        assert f"{score[kind]:.3f}" in GUIDE, (name, kind)
    best, choice = (f"{100 * results('grid')['score'][which]:.1f} %" for which in ("best_knn", "choice_knn"))
    assert best in GUIDE and choice in GUIDE


def moco_cells(queue_size: int | None = None) -> dict[Cell, list[Run]]:
    """Runs of the grid by cell, of one size of queue or of all."""
    grid, _ = read_results(RESULTS / "dictionaries-grid.json")
    groups = by_cell([run for run in grid if run.cell.method == "moco"])
    return {cell: runs for cell, runs in groups.items() if queue_size in (None, cell.queue_size)}


def test_the_law_without_slowing_gives_what_the_guide_says():
    fitted, _ = read_results(RESULTS / "dictionaries-fit.json")
    made = predict(list(moco_cells()), fitted, until=200, num_steps=300, look_every=50, bound=0.9)
    assert not any(law.slowing for law in made.drifts.values())
    said = {one.cell: one.keys for one in made.foretold}

    def squared(groups: dict[Cell, list[Run]]) -> float:
        pairs = []
        for cell, runs in groups.items():
            late = [look for run in runs for look in run.measured.looks if look.step >= 150]
            for age, foretold in said[cell].items():
                found = [look.keys[look.ages.index(age)] for look in late if age in look.ages]
                pairs += [(foretold, statistics.mean(found))] if found else []
        mean = statistics.mean(found for _, found in pairs)
        return 1 - sum((f - s) ** 2 for s, f in pairs) / sum((f - mean) ** 2 for _, f in pairs)

    text = " ".join(GUIDE.split())
    assert len(said) == 25 and f"Without that power R^2 is {squared(moco_cells()):.3f}." in text
    by = {size: squared(moco_cells(size)) for size in (64, 256, 1024, 2048, 4096)}
    assert f"the law without slowing has R^2 {by[1024]:.3f}; with 2,048 and 4,096 keys {by[2048]:.2f} and" in text
    assert f"and {by[4096]:.2f}, but with 256 and 64 only {by[256]:.2f} and {by[64]:.2f}." in text


def test_the_law_of_the_very_steps_by_momentum():
    found = {}
    for cell, runs in moco_cells().items():
        for run in runs:
            looks = [look for look in run.measured.looks if look.step > 200]
            law = drift_of_run(run, looks)
            assert law is not None
            theory = KeyTheory(law, cell.step_rate, cell.momentum or 0.0)
            for look in looks:
                foretold = [theory.agreement(look.step, age) for age in look.ages]
                found.setdefault(cell.momentum, []).extend(zip(foretold, look.keys, strict=True))

    def squared(pairs) -> float:
        mean = statistics.mean(key for _, key in pairs)
        return 1 - sum((key - said) ** 2 for said, key in pairs) / sum((key - mean) ** 2 for _, key in pairs)

    numbers = {momentum: f"{squared(pairs):.2f}" for momentum, pairs in found.items()}
    text = " ".join(GUIDE.split())
    assert f"that is {numbers[0.0]}, {numbers[0.9]} and {numbers[0.99]} for 0, 0.9 and 0.99," in text
    assert f"but {numbers[0.999]} for 0.999 and {numbers[0.9999]} for 0.9999." in text


def test_the_settings_were_foretold_before_their_runs_too():
    early = json.loads((RESULTS / "dictionaries-settings-predictions-2.json").read_text())["foretold"]
    late = results("settings")["predictions"]["foretold"]
    for before, after in zip(early, late, strict=True):
        assert before["cell"] == after["cell"]
        assert list(before["keys"].values()) == pytest.approx(list(after["keys"].values()), abs=1e-4)


def test_the_matching_probabilities_are_those_of_the_results():
    found = json.loads((RESULTS / "negatives.json").read_text())
    runs = {(run["method"], run["seed"]): run for run in found["runs"]}
    seeds, text = (0, 1), " ".join(GUIDE.split())

    def at(method: str, rank: int, last: int, seed: int) -> float:
        """Mean over the log lines of the 36 steps that end there, against the equal share."""
        log = runs[method, seed]["log"]
        values = zip(log["step"], log[f"match_probability_rank_{rank}"], strict=True)
        chosen = [value for step, value in values if last - 36 < step <= last]
        return (1 + found["queue_size"]) * sum(chosen) / len(chosen)

    def mean(method: str, rank: int, last: int) -> float:
        return sum(at(method, rank, last, seed) for seed in seeds) / len(seeds)

    head, *rows = table("rank 1 against the equal share")
    steps = [int(cell.removeprefix("step ")) for cell in head[1:]]
    assert steps == [36, 120, 300, 600, 1200] and found["queue_size"] == 4096
    for method, row in zip(("moco_v2", "mochi"), rows, strict=True):
        assert row[1:] == [f"{mean(method, 1, step):.1f}" for step in steps]
    assert all(at("mochi", 1, step, seed) < at("moco_v2", 1, step, seed) for step in steps[2:] for seed in seeds)
    assert f"the key of rank 1,024 holds {mean('moco_v2', 1024, 1200):.1f} times the equal share with MoCo v2" in text
    linear = [[100 * runs[method, seed]["measured"]["linear"] for seed in seeds] for method in ("moco_v2", "mochi")]
    moco, mochi = (sum(values) / 2 for values in linear)
    apart = [abs(values[0] - values[1]) for values in linear]
    assert f"(linear probe {moco:.1f} % for MoCo v2 and {mochi:.1f} % for MoCHi" in text
    assert f"lie {apart[0]:.1f} and {apart[1]:.1f} points apart" in text
    middle = [f"{mean('moco_v2', 256, last):.1f}" for last in (600, 1200)]
    assert "the key of rank 256 from {} to {} times the equal share".format(*middle) in text
    picked = [runs[one]["measured"]["contrast_accuracy"] for one in runs if one[0] in ("moco_v2", "mochi")]
    assert all(round(100 * value) == 1 for value in picked)


def test_the_vectors_of_a_queue_without_momentum_swing():
    head, *rows = table("cosine of keys with the same views now, 4,096 keys")
    runs = {cell["momentum"]: group for cell, group in in_groups("grid") if cell["queue_size"] == 4096}

    def at(run: dict, step: int, age: int) -> float:
        (look,) = [look for look in run["looks"] if look["step"] == step]
        return look["keys"][look["ages"].index(age)]

    steps = [int(step.split()[-1]) for step in head[1:]]
    for title, *cells in rows:
        momentum, age = re.findall(r"[\d.]+", title)
        group = runs[float(momentum)]
        assert cells == [f"{statistics.mean(at(run, step, int(age)) for run in group):.2f}" for step in steps]
    # At the same steps in each seed: away, and back again.
    for run in runs[0.0]:
        assert at(run, 150, 128) < 0 and at(run, 200, 128) < 0 < at(run, 250, 128) and at(run, 299, 128) > 0.4
    spreads = [f"{mean_of(runs[momentum], 'loss_spread'):.3f}" for momentum in (0.0, 0.9, 0.99, 0.999)]
    text = " ".join(GUIDE.split())
    assert "is {} without momentum, and {}, {} and {} with 0.9, 0.99 and 0.999".format(*spreads) in text
    below = {momentum: math.log(4097) - mean_of(runs[momentum], "loss") for momentum in (0.0, 0.99)}
    assert f"it ends {below[0.0]:.2f} *below*" in text and f"Momentum 0.99 ends {below[0.99]:.2f} below" in text


def test_the_time_of_a_step():
    took: dict[tuple[str, int], list[float]] = {}
    for cell, runs in in_groups("mechanisms"):
        took.setdefault((cell["method"], cell["batch_size"]), []).extend(run["step_milliseconds"] or 0 for run in runs)
    mean = {one: f"{statistics.mean(values):.0f}" for one, values in took.items()}
    text = " ".join(GUIDE.split())
    ends = (mean["end_to_end", size] for size in (16, 64, 128))
    assert "took {}, {} and {} ms end to end".format(*ends) in text
    assert f"it took {mean['moco', 64]} ms with the queue and {mean['memory_bank', 64]} ms with the bank" in text


def test_what_the_guide_says_of_the_bank():
    bank = {cell["num_images"]: runs for cell, runs in in_groups("mechanisms") if cell["method"] == "memory_bank"}

    def curve(run: dict, name: str) -> dict[int, float]:
        """Mean over the looks in the second half of the run, by age."""
        looks = [look for look in run["looks"] if look["step"] >= run["looks"][-1]["step"] / 2]
        found: dict[int, list[float]] = {}
        for look in looks:
            for age, value in zip(look["ages"], look[name], strict=True):
                found.setdefault(age, []).extend([] if value is None else [value])
        return {age: statistics.mean(values) for age, values in found.items() if values}

    def at(images: int, name: str, age: int, first: int | None = None) -> float:
        curves = [curve(run, name) for run in bank[images]]
        return statistics.mean(one[age] / (1 if first is None else one[first]) for one in curves)

    text = " ".join(GUIDE.split())
    knn = [f"{100 * mean_of(bank[images], 'knn'):.1f}" for images in (1024, 4096, 16384)]
    assert "k-NN falls with it, from {} to {} and {} %.".format(*knn) in text
    oldest = [f"{at(images, 'keys', age):.2f}" for images, age in ((1024, 16), (4096, 64), (16384, 128))]
    assert "of the oldest keys falls from {} to {} and {}".format(*oldest) in text
    assert f"at 64 steps it is {at(16384, 'keys', 64):.2f}, for" in text
    shown = [f"{at(4096, name, age):.2f}" for age in (1, 16) for name in ("entries", "keys")]
    assert f"a cosine of {shown[0]} with today's vector" in text and f"itself has {shown[1]}, and" in text
    assert "{} against {} after 16 steps".format(*shown[2:]) in text
    left = [f"{at(4096, name, 16, 1):.2f}" for name in ("entries", "keys")]
    assert "after 16 steps {} of its first cosine is left, where the vector has {}.".format(*left) in text
