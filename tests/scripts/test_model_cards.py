"""model_cards/ and README: every number in them is one of the results files, and the script makes the tables of it."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

import hf_ssl
from hf_ssl.errors import UserError
from hf_ssl.hub.model_card import describe_method
from hf_ssl.methods import METHODS
from hf_ssl.studies.methods_report import MethodRun

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
# By its path: in `scripts` on Python's path lies `evaluate.py`, which would hide the library of that name.
_SPEC = importlib.util.spec_from_file_location("model_cards", ROOT / "scripts" / "model_cards.py")
assert _SPEC is not None and _SPEC.loader is not None
model_cards = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(model_cards)
RESULTS = sorted((CARDS / "results").glob("*.json"))
PAGES = sorted(path for path in model_cards.pages() if "<!-- results: " in path.read_text(encoding="utf-8"))
OF_METHODS = [path for path in RESULTS if json.loads(path.read_text()).get("study") == "methods"]
PERCENT = re.compile(r"\d+\.\d")


def mean_and_deviation(values: list[float]) -> list[str]:
    """In percent, as tables print them, without the library's own code."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    shown = [f"{100 * mean:.1f}"]
    return shown if len(values) == 1 else [*shown, f"{100 * (squares / (len(values) - 1)) ** 0.5:.1f}"]


def test_there_are_results():
    assert OF_METHODS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_results_say(page: Path):
    text = page.read_text(encoding="utf-8")
    assert model_cards.with_tables(text, CARDS) == text, "run `python scripts/model_cards.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_percentage_of_a_table_is_a_mean_of_runs(page: Path):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- results: \w+ (\w+) -->\n(.*?)<!-- end of results -->", text, re.DOTALL)
    for name, block in blocks:
        if CARDS / "results" / f"{name}.json" not in OF_METHODS:
            continue
        runs = json.loads((CARDS / "results" / f"{name}.json").read_text())["runs"]
        by_title: dict[str, list[dict]] = {}
        for one in runs:
            by_title.setdefault(model_cards.title_of(one["method"]), []).append(one)
        rows = [line.split("|")[1:-1] for line in block.splitlines() if line.startswith("|")][2:]
        assert rows
        for row in rows:
            group = by_title[row[0].strip()]
            expected = [
                *mean_and_deviation([one["knn"] for one in group]),
                *mean_and_deviation([one["linear"] for one in group]),
            ]
            assert PERCENT.findall("|".join(row[1:])) == expected


@pytest.mark.parametrize("results", OF_METHODS, ids=lambda path: path.stem)
def test_every_encoder_has_a_card_with_its_numbers_weights_and_command(results: Path):
    content = json.loads(results.read_text())
    expected = {one["method"]: one for one in content["runs"] if one["seed"] == 0 and one["weights"]}
    cards = {path.stem.removeprefix(f"{results.stem}-"): path for path in CARDS.glob(f"{results.stem}-*.md")}
    assert set(cards) == set(expected)
    for method, card in cards.items():
        run = expected[method]
        text = card.read_text(encoding="utf-8")
        metadata = yaml.safe_load(text.split("---")[1])
        (index,) = metadata["model-index"]
        assert index["name"] == card.stem and "runs/" not in text
        claimed = {metric["name"]: metric["value"] for result in index["results"] for metric in result["metrics"]}
        values = {"k-NN": run["knn"], "linear probe": run["linear"]}
        for what, value in values.items():
            (found,) = [number for name, number in claimed.items() if what in name]
            assert found == value, f"{card.name}: {what}"
            assert re.search(rf"\| [^|\n]*{what}[^|\n]* \| {100 * value:.1f} \|", text), f"{card.name}: {what}"
        assert run["weights"] in text
        assert any(command in text for command in content["commands"])


@pytest.mark.parametrize("card", sorted(CARDS.glob("*-*.md")), ids=lambda path: path.stem)
def test_a_card_tells_the_method_that_its_settings_make(card: Path):
    text = card.read_text(encoding="utf-8")
    method = METHODS[yaml.safe_load(text.split("---")[1])["tags"][-1]]
    rows = re.findall(r"^\| config \| (\w+) \| `(.*)` \|$", text, re.MULTILINE)
    is_text = re.compile(r"(?!true$|false$)[a-z]\w*")
    settings = {name: value if is_text.fullmatch(value) else json.loads(value) for name, value in rows}
    assert set(settings) > {"architecture", "image_size"}
    told = describe_method(method, settings)
    assert re.search(rf"^# {re.escape(told['method'])}: encoder `", text, re.MULTILINE)
    assert f"{told['idea']} Paper: [{told['paper'].title}]({told['paper'].url})" in text.split("## Method")[1]


def results_of(*runs: MethodRun) -> dict:
    settings = {"num_epochs": 3.0, "num_steps": None, "mixed_precision": None, "recipe": "quickstart"}
    return {
        "runs": [vars(one) for one in runs],
        "settings": {**settings, "view_recipe": "moco_v2"},
        "dataset": "cifar10-jpeg75",
        "train_images": 50_000,
        "test_images": 10_000,
        "encoder": "test_resnet",
        "num_parameters": 372_688,
        "image_size": 32,
        "collapses": [{"method": "directpred", "seed": 1, "kind": "dimensional", "step": 1700}],
        "commands": ["hf-ssl study methods --dataset data/cifar10-jpeg75"],
    }


def test_a_study_made_by_several_commands_shows_those_that_make_its_table():
    runs = [
        MethodRun(method, seed, 0.5, 0.6, 1.0)
        for method, seeds in (("random", 2), ("byol", 2), ("simsiam", 2), ("mochi", 1))
        for seed in range(seeds)
    ]
    study = "hf-ssl study methods --methods"
    results = results_of(*runs) | {
        "commands": [f"{study} byol moco_v1 --num_epochs 3 --seeds 2", f"{study} mochi simsiam --num_epochs 3"]
    }
    assert model_cards.commands_of(results)[2:-1] == [
        "hf-ssl study methods --num_epochs 3 --methods byol simsiam --seeds 2",
        "hf-ssl study methods --num_epochs 3 --methods mochi",
    ]
    # What differs in more is shown as it was.
    results["commands"].append(f"{study} byol --num_epochs 4")
    assert model_cards.commands_of(results)[2:-1] == results["commands"]


def repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with results `x` of a study and the pages that show them."""
    monkeypatch.setattr(model_cards, "ROOT", folder)
    results = folder / "model_cards" / "results"
    results.mkdir(parents=True)
    (folder / "scripts" / "guides").mkdir(parents=True)
    runs = [MethodRun("random", 0, 0.3, 0.4, 0.0), MethodRun("directpred", 0, 0.5, 0.6, 1.0, "00")]
    (results / "x.json").write_text(json.dumps({"study": "methods", **results_of(*runs)}))
    (results / "gpu_check.json").write_text("{}")
    block = "<!-- results: {} x -->\nold\n<!-- end of results -->\n"
    for page, text in (("README.md", block.format("short")), ("model_cards/README.md", block.format("index"))):
        (folder / page).write_text(text)
    (folder / "scripts" / "guides" / "which_method.md").write_text("# Which method\n")
    return folder


def test_pages_are_made_anew_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    repository(tmp_path, monkeypatch)
    assert model_cards.main(["--check"]) == 1 and "is not what the results say" in capsys.readouterr().out
    assert model_cards.main([]) == 0 and model_cards.main(["--check"]) == 0
    readme = (tmp_path / "README.md").read_text()
    assert "| DirectPred | 50.0 | 60.0 |" in readme
    about = (
        "A small encoder (0.37 M parameters) after 3 epochs of 50,000 images, 32 pixels; then frozen and measured on"
    )
    assert f"{about} 10,000 test images. Random encoder: untrained; supervised: trained with labels. CIFAR" in readme
    assert "JPEG quality 75" in readme and "\u00b1" not in readme


def test_the_readme_tells_no_number_of_the_study_outside_its_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Measured\n")[1].split("\n## ")[0]
    block = re.search(r"<!-- results: short \w+ -->.*?<!-- end of results -->", text, re.DOTALL)
    assert block is not None and re.search(r"\d+ epochs of \d", block.group())
    assert not re.search(r"\d", text.replace(block.group(), ""))


@pytest.mark.parametrize(
    ("page", "change", "message"),
    [
        ("README.md", ("<!-- results: short x -->\n", ""), "`README.md` has no table `short`"),
        ("README.md", ("<!-- end of results -->\n", ""), "one of these is missing. Write it again"),
        ("README.md", ("short x", "long x"), "`README.md` has no table `short`"),
        ("model_cards/README.md", ("index x", "index y"), "`model_cards/README.md` has no table `index x`"),
        (
            "scripts/guides/which_method.md",
            ("#", "<!-- results: all x -->\n<!-- end of results -->"),
            "must be one of",
        ),
        ("scripts/guides/which_method.md", ("#", "<!-- results: short -->\n<!-- end of results -->"), "results: gpu_"),
    ],
)
def test_a_lost_table_or_marker_is_named(tmp_path: Path, monkeypatch, capsys, page: str, change, message: str):
    repository(tmp_path, monkeypatch)
    assert model_cards.main([]) == 0
    text = (tmp_path / page).read_text()
    assert change[0] in text
    (tmp_path / page).write_text(text.replace(*change))
    for arguments in (["--check"], []):
        assert model_cards.main(arguments) == 1
        assert message in capsys.readouterr().err


def test_pages_say_of_gpus_what_the_check_found_or_that_there_was_none(tmp_path: Path):
    for name, kind in (("README.md", "gpu_line"), ("scripts/guides/speed.md", "gpu")):
        text = (ROOT / name).read_text(encoding="utf-8")
        (shown,) = re.findall(rf"<!-- results: {kind} gpu_check -->\n(.*?)<!-- end of", text, re.DOTALL)
        assert text.count("GPU has run") == shown.count("GPU has run"), "said by hand"
    page = "<!-- results: {} -->\n<!-- end of results -->\n"
    for kind in ("gpu", "gpu_line"):
        assert "GPU has run this code yet" in model_cards.with_tables(page.format(f"{kind} gpu_check"), tmp_path)
        with pytest.raises(UserError, match="must be one of"):
            model_cards.with_tables(page.format(f"{kind} another"), tmp_path)
    with pytest.raises(UserError, match="must be one of"):
        model_cards.with_tables(page.format("index gpu_check"), tmp_path)
    stamp = {"code": "1", "device": "NVIDIA H", "torch": "2.11", "dataset": "cifar10"}
    run = {"step": 7, "num_steps": 9, "evaluation": [], "images_per_second": 12345.6}
    steps = {
        "tests": {"counts": {"failed": 1, "passed": 250}},
        "directpred": {"eager": run, "compiled": {**run, "images_per_second": 23456.7}},
    }
    machine = {"device": "NVIDIA H", "cpu": "C", "cores": 2, "driver": "580", "versions": {"torch": "2.11"}}
    kept = {name: {"status": "done", "stamp": stamp, "reason": "", "result": one} for name, one in steps.items()}
    check = {"machine": machine, "code": {"tests": "1", "directpred": "1"}, "steps": kept}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gpu_check.json").write_text(json.dumps(check))
    table = model_cards.with_tables(page.format("gpu gpu_check"), tmp_path)
    assert "| machine | NVIDIA H | C, 2 cores, driver 580 |" in table and "1 failed, 250 passed" in table
    line = model_cards.with_tables(page.format("gpu_line gpu_check"), tmp_path)
    assert "On NVIDIA H: 250 tests for GPUs pass, 1 fail; DirectPred trains on cifar10 at 12,346 images" in line
    assert "23,457 images a second compiled." in line
    check["machine"] = {**machine, "device": "CPU"}
    (tmp_path / "results" / "gpu_check.json").write_text(json.dumps(check))
    with pytest.raises(UserError, match="`gpu_check.json` must be of a GPU"):
        model_cards.with_tables(page.format("gpu gpu_check"), tmp_path)


def test_a_study_needs_a_name_and_its_card_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    root = repository(tmp_path / "checkout", monkeypatch)
    study = tmp_path / "secret" / "study"
    small = {"encoder": "test_resnet", "eval_images": 60, "num_steps": 2, "batch_size": 16, "num_workers": 0}
    hf_ssl.study("methods", dataset="digits", methods=["simsiam"], output_dir=study, **small)
    local = (study / "simsiam" / "seed0" / "encoder" / "README.md").read_text()
    assert yaml.safe_load(local.split("---")[1])["model-index"][0]["name"] == "simsiam-test_resnet"
    content = json.loads((study / "methods.json").read_text())
    content["dataset"], content["settings"]["data_files"] = "birds", "secret/birds/**"  # as earlier versions wrote it
    (study / "methods.json").write_text(json.dumps(content))
    before = (root / "model_cards" / "results" / "x.json").read_bytes()
    with pytest.raises(SystemExit):
        model_cards.main([str(study)])
    assert "`--name` is needed: what the results are called. One that exists is replaced: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        model_cards.main(["--name", "x"])
    assert (root / "model_cards" / "results" / "x.json").read_bytes() == before
    assert model_cards.main([str(study), "--name", "y"]) == 1  # the index has no table of it yet
    assert "`model_cards/README.md` has no table `index y`" in capsys.readouterr().err
    text = (root / "model_cards" / "y-simsiam.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["model-index"][0]["name"] == "y-simsiam"
    assert 'from_pretrained("./y-simsiam/encoder")' in text
    assert not [path for path in root.rglob("y*") if "secret" in path.read_text()]


def test_a_table_says_what_was_not_run_and_what_the_copy_costs(tmp_path: Path):
    runs = [MethodRun("random", 0, 0.3, 0.4, 0.0)]
    runs += [MethodRun("directpred", seed, 0.5 + seed / 100, 0.6, 1.0, "00") for seed in (0, 1)]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(json.dumps(results_of(*runs)))
    page = "before\n<!-- results: index x -->\nold\n<!-- end of results -->\nafter\n"
    text = model_cards.with_tables(page, tmp_path)
    assert text.startswith("before\n<!-- results: index x -->\n| encoder |") and text.endswith("results -->\nafter\n")
    assert "| DirectPred | 2 | 50.5 ± 0.7 | 60.0 ± 0.0 | [card](x-directpred.md) |" in text
    assert "Not run yet: supervised; End-to-end (SimCLR); " in text and "JPEG quality 75" in text
    assert "\n\u00b1 is the standard deviation over seeds; rows without it are of one seed.\n" in text
    assert "A collapse was reported in training by: DirectPred, seed 1 (dimensional, step 1,700)." in text
    assert "3 epochs of 50,000 images, 32 pixels; encoder `test_resnet`, 0.37 M parameters" in text
    assert model_cards.with_tables(text, tmp_path) == text


def test_what_labels_are_worth_is_taken_over_with_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    root = repository(tmp_path / "checkout", monkeypatch)
    study = tmp_path / "secret" / "labels"
    small = {"num_steps": 2, "batch_size": 8, "num_workers": 0, "fractions": [0.1, 1.0], "seeds": 2}
    hf_ssl.study("labels", encoders=["random:test_resnet"], dataset="digits", output_dir=study, **small)
    index = root / "model_cards" / "README.md"
    assert model_cards.main([str(study), "--name", "few"]) == 1
    assert "`model_cards/README.md` has no table `labels few`" in capsys.readouterr().err
    index.write_text(index.read_text() + "<!-- results: labels few -->\n<!-- end of results -->\n")
    assert model_cards.main([str(study), "--name", "few"]) == 0 and model_cards.main(["--check"]) == 0
    runs = json.loads((study / "labels.json").read_text())["runs"]
    for start in ("scratch", "random:test_resnet"):
        cells = [
            " ± ".join(mean_and_deviation([one["accuracy"] for one in runs if kind(one, start, fraction)]))
            for fraction in (0.1, 1.0)
        ]
        assert f"| {start} | {cells[0]} | {cells[1]} |" in index.read_text()
    assert "after 2 steps of 8 images" in index.read_text() and "; 2 seeds, each with" in index.read_text()
    assert not [path for path in root.rglob("*few*") if "secret" in path.read_text()]


def kind(run: dict, start: str, fraction: float) -> bool:
    return run["start"] == start and run["fraction"] == fraction


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('{"study": "labels", "runs": [{"start": "scratch"}]}', "x", "is not of a study of methods"),
        ("{", "x", "is not of a study of methods"),
        ("[]", "x", "is not of a study of methods"),
        ('{"runs": []}', "../../x", "`--name` must be of letters"),
    ],
)
def test_another_study_or_place_is_refused_before_anything_is_copied(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    name: str,
    message: str,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr(model_cards, "ROOT", tmp_path)
    (tmp_path / "methods.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        model_cards.main([str(tmp_path), "--name", name])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["methods.json"]


def test_what_the_guide_says_of_labels_is_what_the_results_say():
    guide = " ".join((ROOT / "scripts" / "guides" / "fine_tune.md").read_text(encoding="utf-8").split())
    assert "a tenth of the labels beats the same network from scratch with all of them. With all labels" in guide
    short, long = (
        json.loads((CARDS / "results" / f"imagenette_labels{end}.json").read_text()) for end in ("", "_long")
    )
    assert f"{short['train_images']:,} images: in {short['settings']['num_steps']} steps" in guide
    assert long["settings"]["num_steps"] == 11 * short["settings"]["num_steps"]

    def accuracies(results: dict, start: str, fraction: float) -> list[float]:
        return [one["accuracy"] for one in results["runs"] if kind(one, start, fraction)]

    scratch = accuracies(short, "scratch", 1.0)
    starts = [start for start in short["encoders"] if start != "scratch"]
    assert len(scratch) == 3 and len(starts) == 3
    assert all(min(accuracies(short, start, 0.1)) > max(scratch) for start in starts)
    ahead = min(accuracies(short, "directpred", 1.0)) - max(scratch)
    assert 0 < min(accuracies(long, "directpred", 1.0)) - max(accuracies(long, "scratch", 1.0)) < ahead
