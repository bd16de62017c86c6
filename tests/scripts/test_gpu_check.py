"""scripts/gpu_check.py: what it keeps and repeats, how it ends programs, and its programs' flags. No GPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import data
import gpu_packages
import gpu_stamps
import gpu_steps
import pytest
import step
from gpu_table import table
from machine import read_settings
from packaging.requirements import Requirement

from hf_ssl.commands import evaluate, pretrain
from hf_ssl.commands import main as hf_ssl
from hf_ssl.data.settings import DataSettings

ROOT = Path(__file__).parents[2]
MACHINE = {"device": "H", "cpu": "C", "cores": 2, "driver": "580", "versions": {"torch": "2.11"}}
CODE = dict.fromkeys(["package", *gpu_steps.STEPS], "1")
STAMP = {"code": "1", "device": "H", "torch": "2.11"}


def load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu_check = load(ROOT / "scripts" / "gpu_check.py", "gpu_check")


def new_check(folder: Path, *words: str, seconds: float = 400.0) -> gpu_steps.Check:
    options = gpu_check.parse(["--work", str(folder / "work"), "--output", str(folder / "check.json"), *words])
    options.work.mkdir(exist_ok=True)
    kept: dict[str, Any] = {"steps": {}, "machine": MACHINE, "code": CODE}
    if options.output.exists():
        kept = json.loads(options.output.read_text())
    return gpu_steps.Check(options, dict(os.environ), time.monotonic() + seconds, kept)


class Programs:
    """Takes the place of `Check.program`: commands and benchmarks run in this process, or are only noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: bool):
        self.seen: dict[str, list[str]] = {}
        self.run = run
        monkeypatch.setattr(gpu_steps.Check, "program", lambda check, *args, **options: self(check, *args))

    def __call__(self, check: gpu_steps.Check, name: str, words: list, seconds: float) -> int | None:
        self.seen[name] = words = [str(word) for word in words]
        (check.work / f"{name}.log").write_text("")
        if not self.run:
            return 0 if name.endswith(("eager", "compiled")) else None
        if words[:2] == ["-m", "hf_ssl"]:
            return hf_ssl(words[2:])
        return {"step.py": step.main, "data.py": data.main}[Path(words[0]).name](words[1:])


def test_what_is_done_is_kept_and_not_repeated(tmp_path, monkeypatch):
    called: list[str] = []

    def ends(name: str, *statuses: str | type[BaseException]):
        endings = list(statuses)

        def work(check, seconds):
            called.append(name)
            ending = endings.pop(0)
            if not isinstance(ending, str):
                raise ending
            return ending, {}, ""

        return gpu_steps.Step(work, 10.0)

    steps = {
        "tests": ends("tests", "done", "done"),
        "data": ends("data", "partial", "done", "done"),
        "step": ends("step", KeyboardInterrupt, "done", "done"),
    }
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    options = ["--cpu", "--steps", *steps]
    with pytest.raises(KeyboardInterrupt):
        list(gpu_check.run_steps(new_check(tmp_path, *options)))
    assert json.loads((tmp_path / "check.json").read_text())["steps"].keys() == {"tests", "data"}
    assert list(gpu_check.run_steps(new_check(tmp_path, *options))) == ["data", "step"]
    assert list(gpu_check.run_steps(new_check(tmp_path, *options))) == []
    check = new_check(tmp_path, *options)
    check.kept["code"] = dict.fromkeys(CODE, "2")
    assert list(gpu_check.run_steps(check)) == [*steps]  # other code
    assert called == ["tests", "data", "step", "data", "step", *steps]


def set_up_training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Training takes no time; returns a list of what was trained, and whether it had begun before."""
    trained: list[tuple[str, bool]] = []

    def program(check: gpu_steps.Check, name: str, words: list, seconds: float, **options: float) -> int:
        folder = check.work / name.removesuffix("-evaluate")
        if name.endswith("-evaluate"):
            folder.with_suffix(".json").write_text('{"results": []}')
            return 0
        trained.append((name, folder.exists()))
        folder.mkdir(exist_ok=True)
        run = {"progress": {"step": 3, "seconds": 1.0}, "training": {"num_steps": 3}}
        (folder / "run.json").write_text(json.dumps(run))
        return 0

    monkeypatch.setattr(gpu_steps.Check, "program", program)
    return trained


def test_a_training_belongs_to_its_code_device_data_and_recipe(tmp_path, monkeypatch):
    trained = set_up_training(monkeypatch)
    images = tmp_path / "cifar10"
    images.mkdir()
    (images / "0.png").write_text("")
    toy = new_check(tmp_path, "--cpu")
    toy.kept["machine"] = {**MACHINE, "device": "CPU"}
    assert gpu_steps.directpred(toy, 300.0)[0] == "done" and trained == [("directpred-eager", False)]

    def train_again(**changes: str) -> str:
        trained.clear()
        check = new_check(tmp_path, "--dataset", str(images))
        check.kept["code"] = CODE | changes
        status, _, reason = gpu_steps.directpred(check, 300.0)
        assert status == "done" and not any(goes_on for _, goes_on in trained)
        return reason

    assert "eager began anew: other device and dataset" in train_again()
    assert [name for name, _ in trained] == ["directpred-eager", "directpred-compiled"]
    assert (tmp_path / "work" / "directpred-eager.before" / "run.json").exists()
    assert train_again(tests="2", directpred="2") == "" and not trained  # what does not train may change
    (images / "1.png").write_text("")
    assert train_again().count("other files than before") == 2 == len(trained)
    assert train_again(package="2").count("other code than before") == 2 == len(trained)
    flags = gpu_steps._recipe
    monkeypatch.setattr(gpu_steps, "_recipe", lambda check: [*flags(check), "--seed", "1"])
    assert train_again(package="2").count("other recipe than before") == 2 == len(trained)
    (tmp_path / "work" / "directpred-eager.stamp").write_text("{")
    assert "eager began anew" in train_again(package="2") and len(trained) == 1


def test_tests_of_another_device_are_run_again_whatever_the_file_of_results_says(tmp_path, monkeypatch):
    programs = Programs(monkeypatch, run=False)
    toy = new_check(tmp_path, "--cpu", "--output", str(tmp_path / "toy.json"))
    toy.kept["machine"] = {**MACHINE, "device": "CPU"}
    gpu_steps.tests(toy, 60.0)
    passed = {"test": "tests/gpu/a.py::one", "outcome": "passed", "seconds": 1.0, "message": ""}
    (toy.work / "tests.jsonl").write_text(json.dumps(passed) + "\n")
    gpu_steps.tests(toy, 60.0)
    assert "--deselect=tests/gpu/a.py::one" in programs.seen["tests"]
    check = new_check(tmp_path)
    check.kept["steps"]["tests"] = {"status": "partial", "stamp": STAMP, "result": None}
    _, result, _ = gpu_steps.tests(check, 60.0)
    assert "--deselect=tests/gpu/a.py::one" not in programs.seen["tests"] and result["counts"] == {}


def test_what_was_measured_belongs_to_its_data_set(tmp_path, monkeypatch):
    done = gpu_steps.Step(lambda check, seconds: ("done", {"results": []}, ""), 60.0)
    monkeypatch.setattr(gpu_check, "STEPS", {"data": done, "step": done})
    images, others = tmp_path / "here" / "cifar10", tmp_path / "there" / "cifar10"
    for folder, text in ((images, "a"), (others, "aa")):
        folder.mkdir(parents=True)
        (folder / "0.png").write_text(text)

    def steps(*words: str) -> list[str]:
        return list(gpu_check.run_steps(new_check(tmp_path, "--steps", "data", "step", *words)))

    assert steps() == ["data", "step"] and steps() == []
    assert steps("--dataset", str(images)) == ["data"] and steps("--dataset", str(images)) == []
    assert steps() == []  # without a data set nothing better can be measured
    assert steps("--dataset", str(others)) == ["data"]
    kept = json.loads((tmp_path / "check.json").read_text())["steps"]
    assert kept["data"]["stamp"]["dataset"] == "cifar10" and "dataset" not in kept["step"]["stamp"]
    assert str(tmp_path) not in json.dumps(kept)  # it is published


@pytest.mark.parametrize(("words", "seconds"), [((), 400.0), (("--dataset", "ORG/NAME"), 5.0)])
def test_what_is_missing_now_costs_no_result_of_an_earlier_call(tmp_path, words, seconds):
    check = new_check(tmp_path, "--steps", "directpred", *words, seconds=seconds)
    result = {"eager": {"step": 0}}
    stamp = STAMP | {"dataset": "ORG/NAME"}
    check.kept["steps"]["directpred"] = {"status": "partial", "stamp": stamp, "seconds": 9.0, "result": result}
    assert list(gpu_check.run_steps(check)) == ["directpred"]
    kept = check.kept["steps"]["directpred"]
    assert (kept["status"], kept["result"], kept["stamp"]) == ("partial", result, stamp)
    assert ("no time was left" if words else "`--dataset` must name") in kept["reason"]


def test_a_toy_has_files_of_its_own(tmp_path, monkeypatch, capsys):
    real, toy = gpu_check.parse([]), gpu_check.parse(["--cpu"])
    assert (real.output, real.work) == (gpu_check.OUTPUT, ROOT / "runs" / "gpu_check")
    assert toy.work == ROOT / "runs" / "gpu_check_cpu" and toy.output == toy.work / "check.json"
    assert gpu_check.parse(["--cpu", "--work", str(tmp_path)]).output == tmp_path / "check.json"
    with pytest.raises(SystemExit):
        gpu_check.parse(["--cpu", "--output", str(gpu_check.OUTPUT)])
    assert "`--output` must be another file with `--cpu`" in capsys.readouterr().err
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Where there is a GPU, its name would be that of the toy's results.
    assert gpu_check._environment(gpu_check.parse(["--cpu", "--work", str(tmp_path)]))["CUDA_VISIBLE_DEVICES"] == ""


def test_the_code_of_a_step_is_all_that_it_imports(tmp_path):
    files = {
        "hf_ssl/data/a.py": "import helper\n",
        "tests/gpu/test_x.py": "from near import one\nimport torch\n",
        "tests/methods/near.py": "def f():\n    import tests_far.deep\n",
        "scripts/benchmarks/tests_far.py": "",
        "tests/methods/helper.py": "",
        "tests/other/near.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folders = '["tests/gpu", "tests/methods", "scripts/benchmarks"]'
    (tmp_path / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\npythonpath = {folders}\n")
    before, package = gpu_stamps.code_of(tmp_path, "tests/gpu"), gpu_stamps.code_of(tmp_path)
    assert before != package != gpu_stamps.code_of(tmp_path, "tests/methods/near.py")
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}# changed\n")
        known = name not in ("tests/methods/helper.py", "tests/other/near.py")
        assert (gpu_stamps.code_of(tmp_path, "tests/gpu") != before) == known, name
        assert (gpu_stamps.code_of(tmp_path) != package) == name.startswith("hf_ssl/")
        (tmp_path / name).write_text(text)
    codes = gpu_steps.codes()
    assert codes.keys() == {"package", *gpu_steps.STEPS} and codes["step"] == codes["predictor"]
    assert len(set(codes.values())) == len(codes) - 1


@pytest.mark.parametrize(
    ("seconds", "options", "grace"), [(60.0, {}, 5), (1000.0, {"grace": 30.0}, 30), (16.0, {}, 4)]
)
def test_a_program_and_its_end_take_no_longer_than_its_time(tmp_path, monkeypatch, seconds, options, grace):
    wait, waits = subprocess.Popen.wait, []

    def wait_for_child(program: subprocess.Popen, timeout: float | None = None) -> int:
        if timeout is None:
            return wait(program)
        waits.append(timeout)
        raise subprocess.TimeoutExpired("stubborn", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_child)
    words = ["-c", "import time; time.sleep(600)"]
    assert new_check(tmp_path).program("stubborn", words, seconds, **options) is None
    assert waits == [seconds - grace, grace]


def test_a_step_without_time_or_data_is_missing(tmp_path):
    check = new_check(tmp_path, "--steps", "step", seconds=5.0)
    assert list(gpu_check.run_steps(check)) == ["step"] and check.kept["steps"]["step"]["status"] == "missing"
    check = new_check(tmp_path, "--steps", "directpred")
    list(gpu_check.run_steps(check))
    assert "`--dataset` must name CIFAR-10" in check.kept["steps"]["directpred"]["reason"]
    assert "`--dataset` must name CIFAR-10" in table(check.kept)


def test_a_program_whose_time_is_over_may_save_and_leaves_nothing_behind(tmp_path, monkeypatch):
    check = new_check(tmp_path)
    wait = subprocess.Popen.wait

    def wait_for_child(program: subprocess.Popen, timeout: float | None = None) -> int:
        if timeout == 970:  # the time is over when the program has its own child
            while not (tmp_path / "child").exists():
                time.sleep(0.01)
            raise subprocess.TimeoutExpired("long", timeout)
        return wait(program, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_child)
    assert check.program("good", ["-c", "print('one\\ntwo\\n')"], 60) == 0 and check.last_words("good") == "two"
    assert check.program("bad", ["-c", "import sys; sys.exit('no room')"], 60) == 1
    assert check.last_words("bad") == "no room"
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        f"place = pathlib.Path({str(tmp_path)!r})\n"
        "def save(*_):\n    (place / 'saved').write_text('yes')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "(place / 'new').write_text(str(child.pid))\n"
        "(place / 'new').rename(place / 'child')\n"
        "time.sleep(600)\n"
    )
    assert check.program("long", ["-c", code], 1000, grace=30.0) is None
    assert (tmp_path / "saved").read_text() == "yes"
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the program's own child lives on")


def test_the_flags_of_all_programs_are_right(tmp_path, monkeypatch):
    programs = Programs(monkeypatch, run=False)
    check = new_check(tmp_path, "--dataset", str(tmp_path))
    for name in ("step", "predictor", "data", "directpred"):
        gpu_steps.STEPS[name][0](check, 300.0)
    assert step.parse(programs.seen["step"][1:]).precision == ["bf16", "no"]
    assert step.parse(programs.seen["predictor"][1:]).part == "predictor"
    groups = {"data": DataSettings, "benchmark": data.BenchmarkSettings}
    _, settings = read_settings(programs.seen["data"][1:], groups, "data.py", "")
    assert settings.only == ["decode", "views", "stream"]
    for kind, compiled in (("eager", None), ("compiled", True)):
        given = pretrain.COMMAND.parse(programs.seen[f"directpred-{kind}"][3:])
        assert (given["recipe"], given["cache"], given["mixed_precision"]) == ("cifar", "uint8", "bf16")
        assert given.get("compile") == compiled and given["resume"] == "auto"
        scored = evaluate.COMMAND.parse(programs.seen[f"directpred-{kind}-evaluate"][3:])
        assert scored.protocols == ["knn", "linear"] and scored.bf16


def test_it_does_all_of_it_in_toy_size(tmp_path, monkeypatch, capsys):
    Programs(monkeypatch, run=True)
    check = new_check(tmp_path, "--cpu", "--steps", "predictor", "data", "directpred")
    assert list(gpu_check.run_steps(check)) == ["predictor", "data", "directpred"]
    kept = json.loads(check.options.output.read_text())
    assert [one["status"] for one in kept["steps"].values()] == ["done"] * 3, kept
    run = kept["steps"]["directpred"]["result"]["eager"]
    assert run["step"] == run["num_steps"] == 3 and run["loss"] < 0
    assert [one["name"] for one in run["evaluation"]] == ["knn"]
    assert str(tmp_path) not in json.dumps(kept["steps"])  # it is published
    shown = table(kept)
    capsys.readouterr()
    assert gpu_check.main(["--table", "--output", str(check.options.output)]) == 0
    assert capsys.readouterr().out == shown + "\n" and "| directpred | eager | step 3 of 3," in shown


def test_the_table_names_failures_and_waits():
    rows = [{"method": "moco", "precision": "no", "step ms": 12.0, "x necessary": 1.04, "lightly x": 1.2}]
    rows += [{**rows[0], "method": "byol", "waits for the device": "called a | synchronizing operation"}]
    tests = {"counts": {"failed": 1, "passed": 5}, "failures": [{"test": "a.py::b[c]", "message": "1 > 0"}]}
    results = {"tests": tests, "step": {"rows": rows, "lightly": True}}
    kept: dict[str, Any] = {"status": "done", "stamp": STAMP}
    steps = {name: {**kept, "result": one} for name, one in results.items()}
    old = {"code": "0", "device": "Z", "torch": "2.9", "dataset": "shapes"}
    steps["data"] = {"status": "done", "stamp": old, "result": {"results": []}}
    shown = table({"machine": MACHINE, "code": CODE, "steps": steps})
    assert "| data (device Z, torch 2.9, other code) | data set | shapes |" in shown
    assert "| tests | tests | 1 failed, 5 passed |\n| tests | `a.py::b[c]` | 1 > 0 |" in shown
    assert "| step | `moco`, float32 | 12 ms, 1.04 of the necessary passes, lightly 1.20 |" in shown
    assert "waits: called a / synchronizing operation" in shown
    assert {line.count("|") for line in shown.splitlines()} == {4}


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_steps.Check, "program", lambda *args: 0)
    monkeypatch.setattr(gpu_steps.Check, "last_words", lambda *args: json.dumps({**MACHINE, "device": "CPU"}))
    places = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "check.json")]
    assert gpu_check.main(places) == 2
    assert "PyTorch sees no CUDA device here. `--cpu` does" in capsys.readouterr().out
    assert gpu_check.main(["--table", *places]) == 2 and "holds no check yet" in capsys.readouterr().out


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1"])
def test_minutes_are_a_number_above_0(minutes, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_check.parse([f"--minutes={minutes}"])
    assert ended.value.code == 2 and f"`--minutes` must be a number above 0, got {minutes}" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--work", "--output"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, flag, capsys):
    (tmp_path / "file").write_text("")
    places = {"--work": str(tmp_path / "work"), "--output": str(tmp_path / "check.json")}
    places[flag] = str(tmp_path / "file" / "below" / "x")
    assert gpu_check.main(["--cpu", *(word for pair in places.items() for word in pair)]) == 2
    told = capsys.readouterr().out
    assert told.startswith(f"error: `{tmp_path / 'file' / 'below'}") and f"Give another place by `{flag}`" in told


def write_wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {need}" for need in needs]
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", "\n".join(lines))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "".join(f"{one.filename},,\n" for one in archive.filelist))


@pytest.mark.parametrize("content", ["{", "[]", '{"steps": 3}', '{"steps": {}, "code": "1"}', None])
def test_a_damaged_file_is_named_and_kept(tmp_path, capsys, content):
    file = tmp_path / "check.json"
    file.mkdir() if content is None else file.write_text(content)
    for words in (["--table"], ["--cpu", "--work", str(tmp_path / "work")]):
        assert gpu_check.main([*words, "--output", str(file)]) == 2
        assert f"`{file}` cannot be read as a check" in capsys.readouterr().out
    assert content is None or file.read_text() == content


def test_missing_packages_are_chosen_from_wheels_with_what_they_need(tmp_path):
    wanted = [
        Requirement(text) for text in ("torch>=2.9", "torch>=99", "no-such-thing>=2", "other; python_version<'3'")
    ]
    missing = gpu_packages.lacking(wanted)
    assert [str(one) for one in missing] == ["torch>=99", "no-such-thing>=2"]
    write_wheel(tmp_path, "no_such_thing", "1.0")
    write_wheel(tmp_path, "no_such_thing", "2.9", "torch")
    write_wheel(tmp_path, "no_such_thing", "2.10", "torch", "its-need<3", "further; extra == 'more'", "gone")
    write_wheel(tmp_path, "its_need", "2.0")
    wheels, absent = gpu_packages.choose(missing[1:], tmp_path)
    assert [wheel.name.split("-")[:2] for wheel in wheels] == [["no_such_thing", "2.10"], ["its_need", "2.0"]]
    assert [str(one) for one in absent] == ["gone"]
    gpu_packages.install(wheels, tmp_path / "site")  # by pip, and without a network
    assert (tmp_path / "site" / "no_such_thing.py").read_text() == "version = '2.10'\n"
    assert {path.suffix for path in (tmp_path / "site").iterdir()} == {".py", ".dist-info"}
    write_wheel(tmp_path, "no_such_thing", "2.11")
    (tmp_path / "no_such_thing-2.11-py3-none-any.whl").write_text("cut off")
    (tmp_path / "nonsense.whl").write_text("")
    assert gpu_packages.choose(missing[1:], tmp_path)[0] == wheels
    command = gpu_packages.how_to_get(absent)
    assert command.startswith("python3 -m pip download --no-deps") and command.endswith("-d wheels 'gone'")
    assert f"--python-version 3.{sys.version_info.minor} --platform manylinux_" in command
    assert not gpu_packages.lacking(gpu_packages.needed(ROOT))


def test_what_is_only_of_use_is_taken_if_its_wheel_is_there(tmp_path, monkeypatch, capsys):
    extras = '{a = ["pytest>=8.3", "pytest-xdist>=99"], b = ["lightly>=99", "torch>=99"]}'
    (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = []\noptional-dependencies = {extras}\n")
    words = ["--cpu", "--work", str(tmp_path / "work")]
    bare, wheels = gpu_check.parse(words), gpu_check.parse([*words, "--wheels", str(tmp_path / "wheels")])
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert gpu_check._environment(bare) is not None
    told = capsys.readouterr().out
    assert told.startswith("Of use, but not necessary: pytest-xdist>=99, lightly>=99")
    assert "'pytest-xdist>=99' 'lightly>=99'" in told and "torch" not in told
    assert not gpu_packages.has_lightly(tmp_path)
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", "lightly", "99.0", "a-command-line-without-wheel")
    write_wheel(tmp_path / "wheels", "lightning_utilities", "99.0")
    write_wheel(tmp_path / "wheels", "torch", "99.0")
    assert gpu_check._environment(wheels) is not None
    assert "Of use, but not necessary: pytest-xdist>=99" in capsys.readouterr().out
    site = tmp_path / "work" / "site"
    assert (site / "lightly.py").exists() and not (site / "torch.py").exists()
    assert gpu_packages.has_lightly(tmp_path)
    named = {one.name for one in gpu_packages.helpful(ROOT)}
    assert named >= {"lightly", "pytest-timeout", "pytest-xdist"}


def test_each_test_is_noted_as_it_ends(tmp_path, monkeypatch):
    hook = load(ROOT / "tests" / "gpu" / "conftest.py", "conftest_of_gpu").pytest_runtest_logreport
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("GPU_CHECK_RESULTS", str(tmp_path / "tests.jsonl"))
    report = {"location": ("a.py", 1, "b"), "keywords": {}, "sections": [], "duration": 0.5}
    for name, when, outcome, longrepr in (
        ("passed", "setup", "passed", None),
        ("passed", "call", "passed", None),
        ("skipped", "setup", "skipped", ("a.py", 1, "Skipped: no CUDA device")),
        ("failed", "call", "failed", "assert 1 == 2"),
    ):
        hook(pytest.TestReport(nodeid=name, when=when, outcome=outcome, longrepr=longrepr, **report))
    lines = gpu_steps._lines_of(tmp_path / "tests.jsonl")
    assert [(one["test"], one["outcome"]) for one in lines] == [(one, one) for one in ("passed", "skipped", "failed")]
    assert [one["message"] for one in lines] == ["", "Skipped: no CUDA device", "assert 1 == 2"]


def test_a_step_that_breaks_costs_only_itself(tmp_path, monkeypatch, capsys):
    def breaks(check, seconds):
        raise ValueError("what it left cannot be read")

    done = ("done", {"results": []}, "")
    steps = {"tests": gpu_steps.Step(breaks, 60.0), "data": gpu_steps.Step(lambda check, seconds: done, 60.0)}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    check = new_check(tmp_path, "--cpu", "--steps", *steps)
    assert list(gpu_check.run_steps(check)) == ["tests", "data"]
    kept = json.loads(check.options.output.read_text())["steps"]
    assert (kept["tests"]["status"], kept["data"]["status"]) == ("failed", "done")
    assert "ValueError: what it left cannot be read" in table(check.kept)
    assert "Traceback" in capsys.readouterr().err


def test_lines_that_a_kill_cut_off_are_left_out(tmp_path, monkeypatch):
    check = new_check(tmp_path)
    (check.work / "tests.stamp").write_text(json.dumps(STAMP))
    good = {"test": "tests/gpu/a.py::one", "outcome": "passed", "seconds": 1.0, "message": ""}
    (check.work / "tests.jsonl").write_text(f'{json.dumps(good)}\n{{"test": "tests/gpu/a.py::tw')
    programs = Programs(monkeypatch, run=False)
    status, result, _ = gpu_steps.tests(check, 60.0)
    assert "--deselect=tests/gpu/a.py::one" in programs.seen["tests"]
    assert status == "partial" and result["counts"] == {"passed": 1}
    run = check.work / "directpred-eager"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"progress": {"step": 7, "seconds": 2.0}, "training": {"num_steps": 9}}))
    line = {"step": 7, "loss": 0.5, "images_per_second": 10.0, "data_wait": 0.0}
    (run / "metrics.jsonl").write_text(f'{json.dumps(line)}\n{{"step": 8, "lo')
    assert gpu_steps._state_of(run)["loss"] == 0.5


def test_a_file_of_tests_that_cannot_be_imported_is_a_failure_beside_the_others(tmp_path, monkeypatch):
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "conftest.py").write_text((ROOT / "tests" / "gpu" / "conftest.py").read_text())
    (folder / "test_broken.py").write_text("import no_such_package\n")
    (folder / "test_good.py").write_text("import pytest\n\n\n@pytest.mark.gpu\ndef test_one():\n    assert True\n")
    monkeypatch.setattr(gpu_steps, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_steps.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # a worker of ours is none of the check's
    status, result, reason = gpu_steps.tests(new_check(tmp_path), 300.0)
    assert (status, reason) == ("done", "") and result["counts"] == {"failed": 1, "passed": 1}
    (failure,) = result["failures"]
    assert failure["test"] == "tests/gpu/test_broken.py"
    assert failure["message"].endswith("ModuleNotFoundError: No module named 'no_such_package'")


def test_wheels_that_cannot_be_used_here_are_no_choice(tmp_path):
    write_wheel(tmp_path, "no_such_thing", "2.0")
    (tmp_path / "no_such_thing-9.0-cp27-cp27m-win32.whl").write_text("for another machine")
    wheels, absent = gpu_packages.choose([Requirement("no-such-thing")], tmp_path)
    assert [wheel.name for wheel in wheels] == ["no_such_thing-2.0-py3-none-any.whl"] and not absent
    wheels[0].write_text("cut off")
    assert "no_such_thing" in str(gpu_packages.install(wheels, tmp_path / "site"))


def test_benchmarks_of_data_keep_each_part_as_it_ends(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    row = {"what": "a", "value": 1.0, "unit": "images/s"}
    monkeypatch.setattr(data, "PARTS", {"decode": lambda *_: [row], "views": interrupted})
    words = ["--dataset", "shapes", "--output", str(tmp_path / "data.json"), "--only", "decode", "views"]
    with pytest.raises(KeyboardInterrupt):
        data.main(words)
    assert json.loads((tmp_path / "data.json").read_text())["results"] == [{"part": "decode", **row}]
