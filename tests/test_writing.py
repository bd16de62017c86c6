"""Files are whole at any time, whichever processes write them, and what killed processes leave is found."""

import json
import multiprocessing
from pathlib import Path

import pytest

from hf_ssl.training import files
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import write_json
from hf_ssl.training.find import remove_leftovers
from hf_ssl.training.output import prepare_output_dir
from hf_ssl.training.watch.log import MetricsLog


def test_two_that_write_one_file_at_once_both_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "settings.json"
    flush = files.flush

    def another_comes_first(partial: Path):
        monkeypatch.setattr(files, "flush", flush)
        write_json(path, {"by": "the other"})
        assert json.loads(path.read_text()) == {"by": "the other"}
        flush(partial)

    monkeypatch.setattr(files, "flush", another_comes_first)
    write_json(path, {"by": "this"})
    assert json.loads(path.read_text()) == {"by": "this"}
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_write_one_file_at_once_leave_it_whole(tmp_path: Path):
    fork = multiprocessing.get_context("fork")
    path, begin = tmp_path / "run.json", fork.Barrier(4)

    def write_often(number: int) -> None:
        begin.wait()
        for _ in range(50):
            write_json(path, {"by": number, "text": str(number) * 5000})
            assert len(set(json.loads(path.read_text())["text"])) == 1

    children = [fork.Process(target=write_often, args=(number,)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_alone(tmp_path: Path):
    path = tmp_path / "run.json"
    write_json(path, {"step": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"step": object()})
    assert json.loads(path.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("word", ["", "0123456789ab."], ids=["of an older version", "of this version"])
def test_a_process_killed_while_it_writes_leaves_nothing_in_the_way(tmp_path: Path, word: str):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "recipe.json", "metrics.jsonl", "diagnostics.jsonl"):
        (run / f".{name}.{word}partial").write_text('{"st')
    remove_leftovers(run)
    assert not list(run.iterdir())
    (run / f".run.json.{word}partial").write_text('{"st')
    prepare_output_dir(TrainingSettings(output_dir=str(run), num_steps=1))  # no step was done in it
    MetricsLog(run / "metrics.jsonl", 0).append({"step": 1})
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [{"step": 1}]
