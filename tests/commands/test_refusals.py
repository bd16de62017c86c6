"""What is refused before any work is done: places that cannot be written, damaged files, values of the wrong kind."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel
from transformers.utils import logging as transformers_log

import hf_ssl
from hf_ssl.commands import main
from hf_ssl.commands.command import call_text
from hf_ssl.commands.flags import flags_of, parse_flags
from hf_ssl.commands.log import show_log
from hf_ssl.data.views.cpu import find_recipe
from hf_ssl.errors import UserError
from hf_ssl.hub.export import export_run
from hf_ssl.hub.names import check_license
from hf_ssl.methods import METHODS
from hf_ssl.settings import as_declared, checked, refuse_unused, rule_of
from hf_ssl.training.record import RunRecord

PRETRAIN = "pretrain --encoder test_resnet --num_steps 2 --warmup_steps 0 --batch_size 16 --num_workers 0"
PRETRAIN += " --dataset digits --cpu"


@checked
class Switches:
    """Two settings.

    Args:
        place: A place.
        number: A number.
        deep: On or off.
    """

    place: str
    number: int
    deep: bool = True


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run of a method that was never trained."""
    method = METHODS["simsiam"]
    config = method.config_class(architecture="test_resnet", image_size=32)  # pyright: ignore[reportCallIssue]
    export_run(method(config), tmp_path / "run")
    return tmp_path / "run"


def refusal(capsys: pytest.CaptureFixture[str], line: str, *words: Any) -> str:
    """What a command line is refused with."""
    capsys.readouterr()
    assert main([*line.split(), *map(str, words)]) == 2
    printed = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(printed) == 1
    return printed[0]


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("evaluate {run} knn --dataset digits", "output"),
        ("analyze {run} --dataset digits", "output"),
        ("extract {run} --dataset digits", "output"),
        ("search picture.png --index nowhere", "figure"),
        ("views --dataset digits", "output"),
        ("study methods --dataset digits", "output_dir"),
        ("study ablation --dataset digits", "output_dir"),
        ("simulate flow", "output_dir"),
        ("finetune {run} --dataset digits", "output_dir"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    line: str, flag: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "x.png"
    said = refusal(capsys, line.format(run=run), f"--{flag}", place)
    assert f"`{flag}` `{tmp_path}/file" in said and "cannot be written: " in said and "Give " in said


def test_a_file_of_results_is_no_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = refusal(capsys, f"evaluate {run} knn --dataset digits --output", tmp_path)
    assert said == f"error: `output` must be a file, but `{tmp_path}` is a folder. Give the name of a file in it."


def test_damaged_files_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(run, tmp_path / "cut")
    (run / "encoder" / "run.json").write_text("{broken")
    for line in (f"analyze {run} --num_workers 0 --num_views 2 --max_images 20 --dataset digits",):
        said = refusal(capsys, line)
        assert f"`{run}/encoder/run.json` is not the record of a run: it cannot be read as JSON" in said
    for part in ("encoder", "pretraining"):
        weights = tmp_path / "cut" / part / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    assert "cut/encoder" in refusal(capsys, f"evaluate {tmp_path}/cut knn --dataset digits")


def test_weights_that_are_not_finite_are_no_start(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for part in ("encoder", "pretraining"):
        weights = load_file(run / part / "model.safetensors")
        name = next(name for name in weights if weights[name].is_floating_point())
        weights[name].fill_(float("nan"))
        save_file(weights, run / part / "model.safetensors", metadata={"format": "pt"})
    start = PRETRAIN.replace("--encoder test_resnet ", "")
    for flag in ("--encoder", "--start_from"):
        said = refusal(capsys, f"{start} {flag} {run} --output_dir {tmp_path}/x")
        assert "weights to start from must be finite" in said


def test_damaged_parts_of_a_run_stop_what_needs_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*PRETRAIN.split(), "--output_dir", str(tmp_path)]) == 0
    weights = tmp_path / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "weights is damaged" in refusal(capsys, f"publish {tmp_path} --repo_id a/b --dry_run")
    again = f"{PRETRAIN} --output_dir {tmp_path} --resume auto"
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text("{broken")
    assert main(again.split()) == 0 and f"{tmp_path}/run.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text())["config"] == record["config"]


def test_a_value_after_a_switch(capsys: pytest.CaptureFixture[str]):
    for line, message in (
        ("--deep maybe", "`--deep` must be true or false, got 'maybe'."),
        ("--no_deep true", "`--no_deep` takes no value. Write `--deep true|false` or `--no_deep`."),
    ):
        with pytest.raises(UserError) as error:
            parse_flags(line.split(), {"all": flags_of(Switches)}, program="x", description="")
        assert str(error.value) == message
        assert "true or false, got 'maybe'" in refusal(capsys, "pretrain --compile maybe")


def test_everything_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"^`place` is needed: A place\. Also needed: `number`\.$"):
        Switches()  # pyright: ignore[reportCallIssue]


def test_rules_in_words():
    assert rule_of(list[Literal["linear", "mlp"]]) == "a list of words, each one of linear, mlp"
    assert rule_of(list[float] | None) == "a list of numbers or none"


def test_one_text_is_a_list_of_one():
    assert as_declared("knn", list[str]) == ["knn"] and as_declared(Path("a"), list[Path] | None) == [Path("a")]
    for annotation in (list[float], list[str] | str, str):
        assert as_declared("knn", annotation) == "knn"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": 7}, "`encoder` must be text, got 7."),
        ({"output_dir": None}, "`output_dir` must be text, got None."),
        ({"method": 3}, "A method must be a subclass of `SSLPreTrainedModel`, got 3."),
        ({"metod": "moco"}, "has no setting `metod`. Did you mean `method`?"),
    ],
)
def test_values_of_the_wrong_kind_in_python(values: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        hf_ssl.pretrain(**{"output_dir": tmp_path / "run", "dataset": "digits", **values})
    assert message in str(error.value)


def test_what_transformers_reports_of_weights_is_checked_here_and_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    sizes = dict[str, Any](hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    sizes |= {"num_attention_heads": 2}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    capsys.readouterr()
    before = transformers_log.get_verbosity(), transformers_log.is_progress_bar_enabled()
    hf_ssl.load_encoder(str(tmp_path))
    printed = capsys.readouterr()
    assert printed.err + printed.out == "" and "LOAD REPORT" not in caplog.text
    assert (transformers_log.get_verbosity(), transformers_log.is_progress_bar_enabled()) == before


def test_licences():
    for good in (None, "apache-2.0", "mit", "cc-by-nc-4.0", "bigscience-bloom-rail-1.0"):
        check_license(good)
    for bad in ("", "My Licence", "Apache-2.0", "mit!"):
        with pytest.raises(UserError, match="`license` must be the identifier of a licence"):
            check_license(bad)


def test_a_call_of_a_group_is_recorded_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert call_text("study", {"seeds": 2}, "ablation") == "hf_ssl.study('ablation', seeds=2)"
    calls = []
    monkeypatch.setattr("hf_ssl.commands.command.called_as", lambda text: calls.append(text) or _nothing())
    with pytest.raises(UserError):
        hf_ssl.simulate("flow", dim=1, output_dir=tmp_path)
    assert calls == [f"hf_ssl.simulate('flow', dim=1, output_dir={str(tmp_path)!r})"]


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["methods"]) == 141
    assert capsys.readouterr().err == ""


def test_a_log_of_the_users_own_has_no_line_twice(monkeypatch: pytest.MonkeyPatch):
    root, own = logging.getLogger(), logging.getLogger("hf_ssl")
    monkeypatch.setattr(root, "handlers", [])  # those of pytest
    monkeypatch.setattr(own, "handlers", [])
    monkeypatch.setattr(own, "level", logging.NOTSET)
    show_log(in_python=True)
    assert len(own.handlers) == 1 and own.level == logging.INFO
    root.addHandler(logging.NullHandler())
    show_log(in_python=True)
    assert not own.handlers and own.level == logging.NOTSET
    show_log()  # a command line prints what it has to say in any case
    assert len(own.handlers) == 1


def test_an_analysis_of_private_images_with_the_views_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.effect_noise((32, 32), 80).convert("RGB").save(tmp_path / "photos" / f"{number}.png")
    changed = {"crop_scale": [0.9, 1.0]}
    data = {"dataset": "shapes", "view_recipe": "simclr", "view_settings": changed}
    record = RunRecord("simsiam", data=data, config={"image_size": 32})
    record.write(run / "encoder")
    values = {"split": "train", "num_views": 2, "num_workers": 0, "seed": 3}
    result = hf_ssl.analyze(run, dataset=tmp_path / "photos", **values)
    assert result.folder == run / "evaluations" and (result.folder / "analysis.json").is_file()
    assert not (run / "encoder" / "analysis.json").exists() and not (run / "encoder" / "figures").exists()
    (told,) = result.encoders.values()
    assert told["view_settings"] == changed and find_recipe("simclr", changed) != find_recipe("simclr")
    record.data["view_settings"] = None
    record.write(run / "encoder")
    (plain,) = hf_ssl.analyze(run, dataset=tmp_path / "photos", **values).encoders.values()
    assert plain["representation"]["numbers"]["alignment"] != told["representation"]["numbers"]["alignment"]


def test_what_is_none_is_not_given_beside_a_setting_that_leaves_it_out():
    refuse_unused(Switches, {"deep": True, "place": None}, ("deep",), "It is deep")
    with pytest.raises(UserError, match="^It is deep, so `place` and `number` would not be used. Leave them out.$"):
        refuse_unused(Switches, {"deep": True, "place": "x", "number": 0}, ("deep",), "It is deep")
