"""The guide of studies: its tables of forecasts are what the command prints, and what the files say."""

import json
import re
import statistics
from pathlib import Path

import pytest

from hf_ssl.commands import main

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "scripts" / "guides" / "studies.md").read_text(encoding="utf-8")
RESULTS = ROOT / "model_cards" / "results" / "ablation"
FRESH = [f"fresh_{data}{heads}" for data in ("cifar", "shapes") for heads in ("", "_heads")]
SECOND = [f"{name}-2" for name in FRESH]  # forecasts of the second form, three seeds
PLACES = [
    "The test is cells that nobody had seen",
    "This second form was committed",
    "The twelve cells of the first table",
]


def rows(text: str) -> dict[str, dict[str, str]]:
    """Rows of the last table of scores in a text, by the name of the forecast."""
    table = text[text.rindex("\n| forecast |") + 1 :].partition("\n\n")[0].splitlines()
    head, *found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in found[1:]}


@pytest.mark.parametrize(
    ("names", "part"),
    [(["core"], 0), (FRESH, 1), (SECOND, 2), (["core-2"], 3)],
    ids=["core", "fresh", "second", "core seeds"],
)
def test_a_table_of_scores_is_what_the_command_prints(
    names: list[str], part: int, tmp_path: Path, capsys: pytest.CaptureFixture
):
    files = [str(RESULTS / f"{name}.json") for name in names]
    assert main(["study", "ablation", "--drawn_from", *files, "--output_dir", str(tmp_path)]) == 0
    printed = rows(capsys.readouterr().out)
    written = rows(re.split("|".join(PLACES), GUIDE)[part])
    assert len(written) >= 5
    for name, cells in written.items():
        assert cells == {column: printed[name][column] for column in cells}, name


def told_and_found(names: list[str]) -> list[tuple[str, dict, dict]]:
    """Cell, prediction and run of each run in some files."""
    found = []
    for name in names:
        results = json.loads((RESULTS / f"{name}.json").read_text())
        said = {(one["title"], one["seed"]): one for one in results["predictions"]["runs"]}
        found += [(f"{name} {run['title']}", said[run["title"], run["seed"]], run) for run in results["runs"]]
    return found


def is_called(said: dict, run: dict) -> bool:
    return said["forecasts"]["all"]["expected"] == run["collapse"]


def test_the_totals_over_the_fresh_cells_computed_a_second_time():
    called, ratios = {}, {}
    for cell, said, run in told_and_found(SECOND):
        if said["before_run"]:
            called.setdefault(cell, []).append(is_called(said, run))
            if run["collapse"] != "complete":
                pair = run["measured"]["projection_rank"], said["forecasts"]["all"]["rank"]
                ratios.setdefault(cell, []).append(pair)
    means = [
        statistics.mean(found) / statistics.mean(told)
        for found, told in (zip(*one, strict=True) for one in ratios.values())
    ]
    row = rows(GUIDE.partition(PLACES[2])[0])["all"]
    assert row["runs called"] == f"{sum(map(sum, called.values()))} of 40"
    assert row["cells called"] == f"{sum(map(all, called.values()))} of {len(called)}"
    assert row["rank of z within 1.5"] == f"{sum(1 / 1.5 <= one <= 1.5 for one in means)} of {len(means)}"
    assert row["measured / forecast rank"] == f"{statistics.median(means):.2f}"
    assert len(called) == 20 and {len(one) for one in called.values()} == {2}


def test_what_the_guide_says_of_single_runs_is_in_the_files():
    text = " ".join(GUIDE.split())
    second = told_and_found(SECOND)
    right = [is_called(said, run) for _, said, run in second]
    late = [is_called(said, run) for _, said, run in second if not said["before_run"]]
    assert f"It calls {sum(right) - sum(late)} of 40 runs, and {sum(right)} of all 60." in text
    assert f"the second form calls {sum(late)} of 20." in text
    # The rule that needs a run: a seed ends as seed 0 of its cell did.
    for names, count, of in ((SECOND, 36, 40), (["core-2"], 24, 24)):
        runs = told_and_found(names)
        first = {cell: run["collapse"] for cell, _, run in runs if not run["seed"]}
        new = [(cell, said, run) for cell, said, run in runs if run["seed"]]
        assert (sum(first[cell] == run["collapse"] for cell, _, run in new), len(new)) == (count, of)
        if names == SECOND:
            assert sum(run["collapse"] == "complete" for *_, run in new) == 20
    assert "calls 36 of these 40, and 24 of the 24 further below, where the forecast calls 38 and 22:" in text
    grown = [
        run["measured"]["looks"][0]["eigenvalues"][0] / run["start"]["eigenvalues"][0]
        for *_, run in second
        if run["measured"].get("looks")
    ]
    assert min(grown) > 12.5 and max(grown) < 34
    missed = [(cell, run) for cell, said, run in second if not is_called(said, run)]
    cell_near = " linear, EMA, symmetric, lr x 3, decay 0.004"
    near = [run["measured"]["projection_rank"] for cell, run in missed if cell_near in cell]
    assert (len(missed), len(near)) == (7, 4) and f"with ranks of {min(near):.1f} to {max(near):.1f} where" in text
    limits = [0.15 * run["start"]["projection_rank"] for _, _, run in second]
    assert f"where less than {min(limits):.1f} to {max(limits):.1f} is a collapse" in text
    mlps = [(said, run) for cell, said, run in second if " mlp" in cell and said["before_run"]]
    ratios = [said["forecasts"]["all"]["rank"] / run["measured"]["projection_rank"] for said, run in mlps]
    left = [run["measured"]["representation_rank"] for _, run in mlps]
    start = [run["start"]["representation_rank"] for _, run in mlps]
    assert len(mlps) == 4 and f"{min(ratios):.1f} to {max(ratios):.1f} times too high" in text
    assert f"({min(left):.1f} to {max(left):.1f} are left of {min(start):.0f} to {max(start):.0f})" in text
    # The MLPs of both data sets without EMA and the one of the first table, by what learns in the forecast.
    known = [*second, *told_and_found(["core"])]
    ranks = {
        name: [said["forecasts"][name]["rank"] for cell, said, run in known if " mlp" in cell and run["seed"] == 0]
        for name in ("all", "without hidden_layers")
    }
    assert "fall to {:.1f}, {:.1f} and {:.1f}.".format(*ranks["without hidden_layers"]) in text
    assert "learns as well: {:.1f}, {:.1f} and {:.1f}.".format(*ranks["all"]) in text


def test_which_directions_were_said_to_live_and_when_the_others_die():
    text = " ".join(GUIDE.split())
    pairs = [
        (said["forecasts"]["all"]["deaths"], run["measured"]["deaths"])
        for _, said, run in told_and_found(SECOND)
        if said["before_run"]
    ]
    assert len(pairs) == 40
    for place, start, joined in ((1, "Of the ", " that the 40 runs lose, "), (0, " at step 20, and ", None)):
        steps = [step for pair in pairs for step in pair[place] if step is not None]
        early = sum(step == 20 for step in steps)
        said = f"{start}{len(steps):,}{joined}{early:,}" if joined else f"{start}{early:,} of the {len(steps):,} that"
        assert said in text
    alive = [(told.count(None), found.count(None)) for told, found in pairs]
    assert "leave {} directions in all where {} are left".format(*map(sum, zip(*alive, strict=True))) in text
    off = [abs(told - found) for told, found in alive]
    assert f"right in {off.count(0)} runs, and off by at most one in {sum(one <= 1 for one in off)})" in text
    late = [
        abs(one - other)
        for told, found in pairs
        for one, other in zip(told, found, strict=False)
        if one is not None and other is not None and max(one, other) > 20
    ]
    assert f"at least one of the two die {statistics.median(late):g} steps apart in the median, in runs of 400" in text


def test_the_two_further_seeds_of_the_first_cells():
    text = " ".join(GUIDE.split())
    new = [(cell, said, run) for cell, said, run in told_and_found(["core-2"]) if said["before_run"]]
    missed = [(cell, said, run) for cell, said, run in new if not is_called(said, run)]
    assert len(new) == 24 and [cell.removeprefix("core-2 ") for cell, *_ in missed] == [
        "linear, no EMA, lr x 10, decay 0.0004",
        "linear, no EMA, decay 1",
    ]
    _, said, run = missed[0]
    told, limit = said["forecasts"]["all"]["rank"], 0.15 * run["start"]["projection_rank"]
    found = run["measured"]["projection_rank"]
    assert f"a rank of {told:.2f} where less than {limit:.2f} is a collapse, and has {found:.1f};" in text
    assert (missed[1][1]["forecasts"]["all"]["expected"], missed[1][2]["collapse"]) == ("dimensional", "complete")
    linear = [
        run["measured"]["projection_rank"]
        for cell, _, run in told_and_found(["core-2"])
        if " linear," in cell and "no stop-gradient" not in cell and "decay 1" not in cell
    ]
    assert f"the {len(linear)} runs of a linear predictor" in text
    assert f"end with a rank of z of {min(linear):.1f} to {max(linear):.1f}." in text
    # Seed 0 is that of the first table, run for run.
    first = {run["title"]: run["measured"]["projection_rank"] for *_, run in told_and_found(["core"])}
    again = {
        run["title"]: run["measured"]["projection_rank"] for *_, run in told_and_found(["core-2"]) if not run["seed"]
    }
    assert first == again


@pytest.mark.parametrize("name", ["core_seed1", "core-2", *FRESH, *SECOND])
def test_what_was_said_before_the_runs_is_what_they_are_judged_by(name: str):
    said = json.loads((RESULTS / f"{name.replace('_seed1', '')}.predictions.json").read_text())
    results = json.loads((RESULTS / f"{name}.json").read_text())
    assert results["predictions"] == said
    before = {(one["title"], one["seed"]) for one in said["runs"] if one["before_run"]}
    runs = {(run["title"], run["seed"]) for run in results["runs"]}
    assert {run for run in runs if not name.endswith("-2") or run[1] > 0} == before


def test_the_table_of_negatives_is_what_the_runs_came_to():
    runs = json.loads((RESULTS.parent / "negatives.json").read_text())["runs"]
    columns = [("linear", 1), ("knn", 1), ("false_negative_share", 1), ("contrast_accuracy", 1)]
    columns += [("contrast_accuracy_with_mixed", 1), ("view_alignment_h", 3), ("class_alignment_h", 3)]
    columns += [("uniformity_h", 2), ("view_alignment_z", 3), ("uniformity_z", 2)]
    lines = GUIDE[GUIDE.index("| method | linear (%) |") :].split("\n\n")[0].splitlines()[2:]
    shown = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert [*shown] == ["fresh", "moco_v2", "mochi", "moco_v2-oracle", "mochi-oracle", "supervised"]
    for method, cells in shown.items():
        own = [run["measured"] for run in runs if run["method"] == method]
        assert len(own) == 2
        for cell, (name, digits) in zip(cells, columns, strict=True):
            factor = 100 if digits == 1 else 1
            values = [factor * one[name] for one in own if one[name] is not None]
            mean, deviation = (f(values) if values else 0.0 for f in (statistics.mean, statistics.stdev))
            assert cell == (f"{mean:.{digits}f} \N{PLUS-MINUS SIGN} {deviation:.{digits}f}" if values else "")


def test_what_the_guide_says_of_negatives():
    text = " ".join(GUIDE.split())
    found: dict[str, list[dict]] = {}
    for run in json.loads((RESULTS.parent / "negatives.json").read_text())["runs"]:
        found.setdefault(run["method"], []).append(run["measured"])

    def mean(method: str, name: str) -> float:
        return statistics.mean(one[name] for one in found[method])

    even = [f"{mean(method, 'uniformity_h'):.2f}" for method in ("mochi", "moco_v2")]
    assert f"MoCo v2 ({even[0]} against {even[1]} on average)" in text
    by = {
        method: 100 * (mean(f"{method}-oracle", "linear") - mean(method, "linear")) for method in ("moco_v2", "mochi")
    }
    assert (
        f"of MoCo v2 by {by['moco_v2']:.1f} points on average and lowers that of MoCHi by {-by['mochi']:.1f}" in text
    )
    for one in ("moco_v2", "mochi"):
        seeds = [abs(run["linear"] - other["linear"]) for run, other in [found[f"{one}-oracle"]]]
        assert abs(by[one]) < 100 * max(seeds)
    best = max(mean(method, "linear") for method in found if method != "supervised")
    assert round(100 * (mean("supervised", "linear") - best)) == 11 and "leads by eleven points" in text
    for mochi, moco, supervised in zip(found["mochi"], found["moco_v2"], found["supervised"], strict=True):
        assert mochi["uniformity_h"] < min(moco["uniformity_h"], supervised["uniformity_h"])
        assert mochi["uniformity_z"] > moco["uniformity_z"] and moco["false_negative_share"] > 0.1
        assert moco["false_negative_share"] > moco["false_negative_share_early"]


def test_the_linear_predictor_of_the_methods_collapses_in_every_seed():
    assert "collapses in all three seeds and ends below the random encoder" in " ".join(GUIDE.split())
    results = json.loads((RESULTS.parent / "cifar10.json").read_text())
    linear = {one["method"]: [] for one in results["runs"]}
    for one in results["runs"]:
        linear[one["method"]].append(one["linear"])
    assert sorted(one["seed"] for one in results["collapses"] if one["method"] == "linear") == [0, 1, 2]
    assert len(linear["linear"]) == 3 and max(linear["linear"]) < min(linear["random"])
    assert len(linear["directpred"]) == 3 and min(linear["directpred"]) > max(linear["random"])
