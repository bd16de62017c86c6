"""scripts/benchmarks/speed.py: parts that its benchmarks accept, a file that keeps what it has, and tables of it."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import data
import end_to_end
import processes
import pytest
import speed
import speed_tables
import step

from hf_ssl.errors import UserError

MACHINE = {"cpu": "CPU X", "cores": 4, "versions": {"torch": "9.9", "lightly": "1.1"}}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("json" if name == "lightly" else name))
    (tmp_path / "small").mkdir()
    (tmp_path / "photos").mkdir()
    return [str(tmp_path / "small"), str(tmp_path / "photos")]


@pytest.mark.parametrize("name", speed.PARTS)
def test_a_benchmark_takes_the_flags_of_its_part(folders, name):
    script, *flags = speed.PARTS[name]
    if script == "step.py":
        assert step.parse(flags).compare in ("lightly", None)
    elif script == "processes.py":
        assert processes.parse(flags).num_processes == [2]
    else:
        settings = {"data.py": data, "end_to_end.py": end_to_end}[script].BenchmarkSettings
        groups = {"data": data.DataSettings, "benchmark": settings}
        flags = [folders[0] if flag in ("SMALL", "PHOTOS") else flag for flag in flags]
        assert data.read_settings(flags, groups, script, "")[0].dataset == folders[0]


def test_a_part_takes_the_place_of_the_same_part_and_no_path_is_kept(folders, tmp_path, monkeypatch):
    seen: list[list[str]] = []

    class Done:
        returncode = 0

    def run(command: list[str]) -> Done:
        seen.append(command)
        key = "results" if "data.py" in command[1] else "rows"
        Path(command[-1]).write_text(json.dumps({key: [{"number": len(seen)}], "settings": {"dataset": folders[0]}}))
        return Done()

    monkeypatch.setattr(speed, "subprocess", SimpleNamespace(run=run))  # platform's own calls stay
    output = tmp_path / "speed.json"
    for _ in range(2):
        assert speed.main([*folders, "--only", "queue", "views", "--output", str(output)]) == 0
    assert speed.main([*folders, "--only", "queue", "--output", str(output)]) == 0
    parts = json.loads(output.read_text())["parts"]
    assert {name: part["rows"] for name, part in parts.items()} == {"queue": [{"number": 5}], "views": [{"number": 4}]}
    assert parts["views"]["command"].startswith("python scripts/benchmarks/data.py --dataset small --only decode")
    assert parts["views"]["machine"]["cores"] and str(tmp_path) not in output.read_text()
    assert seen[1][2:4] == ["--dataset", folders[0]]


def test_parts_without_the_comparison_need_no_lightly(folders, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert speed.parse([*folders, "--only", "reader", "step_224", "processes"]).only[0] == "reader"
    for words in (["--only", "reader", "views"], []):
        with pytest.raises(UserError, match="The comparison needs lightly"):
            speed.parse([*folders, *words])


def test_wrong_input_is_named_before_anything_is_measured(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *arguments: pytest.fail("measured"))
    other = tmp_path / "other.json"
    foreign = "does not come from this benchmark"
    for content, message in [("{}", foreign), ("{", "is not JSON"), ('{"study": "speed"}', foreign)]:
        other.write_text(content)
        with pytest.raises(UserError, match=message):
            speed.main([*folders, "--output", str(other)])
        assert other.read_text() == content
    for arguments, message in [
        ([*folders, "--only", "step_225"], r"Unknown part `step_225`. .* Did you mean `step_224`\?"),
        ([folders[0], str(tmp_path / "none")], "none` does not exist"),
        ([*folders, "--output", str(tmp_path / "none" / "x.json")], "the folder of .* does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            speed.main(arguments)


def test_without_lightly_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hf_ssl\[benchmarks\]'"):
        speed.main(folders)


def part(*rows: dict) -> dict:
    return {"command": "python x.py", "machine": MACHINE, "rows": list(rows)}


def test_tables_name_ratios_machine_and_command():
    def of_views(ours: float, theirs: float) -> dict:
        names = {"hf_ssl": ours, "lightly": theirs, "torchvision v1, as in solo-learn": theirs * 2}
        rows = [{"part": "views", "what": name, "value": value} for name, value in names.items()]
        decoders = [{"part": "decode", "what": name, "value": 7.0} for name in ("hf_ssl", "OpenCV", "Pillow")]
        return part(*rows, *decoders)

    parts = {
        "views": of_views(9000.0, 1000.0),
        "views_224": of_views(400.0, 100.0),
        "step": part(
            {"method": "moco", "x necessary": 1.0123, "lightly x": 1.1},
            {"method": "mochi", "x necessary": 1.07},
        ),
        "step_224": part({"method": "moco", "x necessary": 0.99}),
        "queue": part({"queue": 4096, "batch": 128, "queue x": 1.5, "lightly x": 3.0}),
        "processes": part({"method": "byol", "processes": 2, "x alone": 1.75}),
        "whole": part(
            {"what": "network", "of the network": 1.0},
            {"what": "hf_ssl", "of the network": 0.8},
            {"what": "lightly", "of the network": 0.5},
        ),
    }
    views = speed_tables.views(parts)
    assert [line.split(" | ")[0] for line in views.splitlines()[2:6]] == [
        "| hf_ssl",
        "| torchvision v1, as in solo-learn",
        "| lightly",
        "| decoding alone: hf_ssl / OpenCV / Pillow",
    ]
    assert "| lightly | 1,000 | 100 |" in views and "7 / 7 / 7" in views
    assert views.count("4 cores (CPU X), torch 9.9, lightly 1.1.") == 1 and views.count("python x.py") == 2
    steps = speed_tables.steps(parts)
    assert "| `moco` | 1.01 | 1.10 | 0.99 |  |" in steps and "| `mochi` | 1.07 |  |  |  |" in steps
    reading = [
        {"part": "reader", "what": what, "value": value, "unit": "s"} for what, value in [("a", 1e5), ("b", 0.123)]
    ]
    assert "| reader: a | 100,000 s |\n| reader: b | 0.12 s |" in speed_tables.reader({"reader": part(*reading)})
    shared = speed_tables.shared_work(parts)
    assert "| loss against 4,096 keys, batch 128 | its two matrix products | 1.50 | 3.00 |" in shared
    assert "| `byol`, step of 2 processes | the same step of each alone | 1.75 | |" in shared
    assert "| whole training of `moco` | the network alone | 1.25 | 2.00 |" in shared
    short = speed_tables.in_short(parts)
    assert "2.5 ms" in short and "torchvision takes 2.0 times and lightly 4.0 times" in short and "1.07 times" in short
