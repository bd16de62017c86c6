"""The record of a run: what stands in the file, what older versions left out, and what is not a record."""

import json
from pathlib import Path

import pytest
import torch

from hf_ssl.errors import UserError
from hf_ssl.training.record import Progress, RunRecord

PARTS = {"method": "simsiam", "config": {"rho": 0.3}, "data": {"dataset": "digits"}, "training": {"seed": 1}}


def begun(**parts) -> RunRecord:
    return RunRecord.begin("simsiam", torch.device("cpu"), config={"rho": 0.3}, training={"seed": 1}, **parts)


def test_what_is_written_is_what_is_read(tmp_path: Path):
    record = begun(
        data={"dataset": "digits", "dataset_kind": "embedded"}, details={"num_parameters": 7}, license="mit"
    )
    record.progress = Progress(step=3, epoch=None, images_seen=24, seconds=1.5, energy_kwh=0.25, energy_of=["GPU"])
    record.collapse = {"kind": "complete", "step": 2, "report": "..."}
    record.changes = [{"step": 1, "name": "seed", "from": 0, "to": 1}]
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["num_parameters"] == 7 and "details" not in told  # beside the others, as in older versions
    assert told["progress"]["energy_of"] == ["GPU"] and told["command"] and told["versions"]["torch"]
    assert not list(tmp_path.glob(".*"))  # nothing half-written


def test_what_is_not_known_is_left_out(tmp_path: Path):
    told = begun(data={}).to_json()
    assert {"changes", "collapse"}.isdisjoint(told) and not [name for name in told["progress"] if "energy" in name]
    assert RunRecord.read(tmp_path) is None


def test_the_record_of_an_older_version_is_read(tmp_path: Path):
    """It has fewer parts, and perhaps some that are gone; nothing of them is lost."""
    record = RunRecord.of({**PARTS, "progress": {"step": 9, "devices": 2}, "gone": [1]})
    assert record.progress == Progress(step=9) and record.origin is None and record.versions == {}
    assert record.to_json()["gone"] == [1]


def test_a_run_from_before_decoding_on_the_device_goes_on_where_workers_decode():
    data = dict.fromkeys(("view_recipe", "view_settings", "views_on", "cache", "shuffle_window", "fingerprint"))
    steps = {"num_steps": 4, "warmup_steps": 0}
    old, new, other = (
        RunRecord.of({**PARTS, "data": {**data, **more}, "training": steps, "progress": {}}).identity()
        for more in ({}, {"decode_on": "cpu"}, {"decode_on": "gpu"})
    )
    assert old == new != other


@pytest.mark.parametrize(
    ("content", "lacking"),
    [
        ({}, "it lacks `method`, `config`, `data`, `training`, `progress`"),
        ({**PARTS, "progress": 3}, "`progress` must be a JSON object, got 3"),
        ({**PARTS, "progress": {}, "method": None}, "`method` must be text, got None"),
        ({**PARTS, "progress": {"step": "many"}}, "`progress.step` must be a whole number, got `many`"),
        ({**PARTS, "progress": {}, "skipped": {"a": "b"}}, "`skipped` must be a JSON object, got"),
        ({**PARTS, "progress": {}, "data": {"dataset": 3}}, "`data.dataset` must be text, got 3"),
        (
            {**PARTS, "progress": {}, "training": {"num_steps": "x"}},
            "`training.num_steps` must be a whole number or none, got `x`",
        ),
        ({**PARTS, "progress": {}, "collapse": "yes"}, "`collapse` must be a JSON object or none, got `yes`"),
        ({**PARTS, "progress": {}, "collapse": {"step": 3}}, "it lacks `collapse.report`"),
    ],
)
def test_another_file_of_this_name_is_no_record(content, lacking: str, tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"run.json` is not the record of a run: .*{lacking}"):
        RunRecord.read(tmp_path)


def test_tokens_in_addresses_are_not_kept():
    record = begun(data={"dataset": "https://user:secret@example.org/x.tar?token=abc"})
    assert "secret" not in json.dumps(record.to_json()) and "abc" not in json.dumps(record.to_json())


def test_a_run_that_goes_on_keeps_its_past():
    former = begun(data={"dataset": "digits"})
    former.command, former.skipped, former.progress = "hf-ssl pretrain", {"damaged": 2}, Progress(step=5)
    former.finished = "2026-01-01T00:00:00+00:00"
    for at_end, finished in ((True, former.finished), (False, None)):
        record = begun(data={"dataset": "digits"})
        record.go_on(former, 5, at_end)
        assert (record.command, record.skipped, record.progress.step) == ("hf-ssl pretrain", {"damaged": 2}, 5)
        assert record.finished == finished
        record.end()
        assert (record.finished == former.finished) is at_end


def test_a_collapse_after_the_step_that_a_run_goes_back_to_has_not_happened():
    former = begun(data={})
    former.collapse = {"kind": "complete", "step": 6, "report": "..."}
    for step, kept in ((5, None), (6, former.collapse)):
        record = begun(data={})
        record.go_on(former, step, at_end=False)
        assert record.collapse == kept
