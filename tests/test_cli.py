"""Flags, help and errors come from docstrings and types; messages are a sentence, bugs keep their traceback."""

import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from huggingface_hub.dataclasses import strict

from hf_ssl import cli
from hf_ssl.cli import errors_for_users, parse_pretraining, parse_settings, settings_of
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.views import VIEW_RECIPES
from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig
from hf_ssl.training.arguments import ALTERNATIVES, TrainingSettings


def parse(*words: str) -> tuple[Any, Any, Any, Any]:
    return parse_pretraining(
        words,
        METHODS,
        DataSettings,
        TrainingSettings,
        default_method="directpred",
        default_recipe="paper-imagenet",
        alternatives=ALTERNATIVES,
        examples="an example",
    )


@dataclasses.dataclass
class Everything:
    """One field of each kind.

    Args:
        word: A word, 100 % of it
            on two lines.
        choice: One of two.
        table: Anything.
        numbers: Several.
        maybe: A number or nothing.
        switch: On by default.

    Raises:
        ValueError: never: this is no field.
    """

    word: str = "a"
    choice: Literal["a", "b"] = "a"
    table: dict[str, Any] | None = None
    numbers: list[float] | tuple[float, ...] = (0.5, 1.0)
    maybe: float | None = 0.1
    switch: bool = True


def parse_everything(*words: str, **options: Any) -> dict[str, Any]:
    return parse_settings(words, {"all": Everything}, description="Try.", **options)[0]


def test_types_of_the_command_line():
    assert Everything(**parse_everything()) == Everything()
    given = parse_everything(
        "--word", "b", "--choice=b", "--table", '{"a": {"b": [1]}}', "--numbers", "1", "2", "--maybe", "none",
        "--switch", "false",
    )  # fmt: skip
    assert given == {
        "word": "b",
        "choice": "b",
        "table": {"a": {"b": [1]}},
        "numbers": [1.0, 2.0],
        "maybe": None,
        "switch": False,
    }
    assert parse_everything("--maybe", "2", "--no_switch") == {"maybe": 2.0, "switch": False}


def test_defaults_give_way_to_what_is_typed():
    defaults = {"word": "recipe", "maybe": 3.0}
    assert parse_everything("--word", "typed", defaults=defaults) == {"word": "typed", "maybe": 3.0}
    # Typing one of two alternatives drops the recipe's choice of the other.
    given = parse_everything("--word", "typed", defaults=defaults, alternatives=[("maybe", "word")])
    assert given == {"word": "typed", "maybe": None}
    with pytest.raises(KeyError, match="maybee"):
        parse_everything(defaults={"maybee": 3})


def test_help_comes_from_the_docstring():
    help_texts = {field.name: field.metadata["help"] for field in dataclasses.fields(settings_of(Everything))}
    assert help_texts["word"] == "A word, 100 %% of it on two lines."
    assert help_texts["switch"] == "On by default."


def test_a_field_without_description_is_an_error():
    @dataclasses.dataclass
    class Forgetful:
        """Settings.

        Args:
            told: Told.
        """

        told: int = 1
        untold: int = 2

    with pytest.raises(KeyError, match="`Forgetful` does not describe `untold`"):
        settings_of(Forgetful)


def test_a_config_shows_its_own_fields_alone():
    @strict
    class TinyConfig(SSLConfig):
        """Tiny.

        Args:
            own: Its own.
        """

        model_type = "hf_ssl_tiny"
        own: float = 0.5

    names = [field.name for field in dataclasses.fields(settings_of(TinyConfig))]
    assert names == ["architecture", "model_args", "image_size", "image_mean", "image_std", "own"]


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_a_command(method: str):
    assert {"paper-imagenet", "cifar"} <= METHODS[method].recipes.keys()
    for recipe, values in METHODS[method].recipes.items():
        model_class, config, data, training = parse("--method", method, "--recipe", recipe, "--output_dir", "x")
        assert model_class is METHODS[method]
        settings = {**vars(training), **vars(data), **vars(config)}
        for name, value in values.items():
            assert settings[name] == value or list(settings[name]) == list(value)
        assert training.recipe == recipe
        assert (data.view_recipe or model_class.view_recipe) in VIEW_RECIPES


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_every_setting(method: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        parse("--method", method, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for kind in (METHODS[method].config_class, DataSettings, TrainingSettings):
        for field in dataclasses.fields(settings_of(kind)):
            assert f"--{field.name}" in text
    assert f"settings of {method}:" in text and "data:" in text and "training:" in text and "an example" in text
    assert "(default" not in text and "--no_channels_last" not in text


def test_both_spellings():
    _, config, _, training = parse("--encoder", "resnet18", "--output-dir", "x", "--batch-size", "3")
    assert (config.architecture, training.output_dir, training.batch_size) == ("resnet18", "x", 3)
    assert parse("--architecture", "resnet18", "--output_dir", "x")[1].architecture == "resnet18"


def test_steps_replace_the_epochs_of_a_recipe():
    *_, training = parse("--output_dir", "x", "--num_steps", "5", "--warmup_steps", "1")
    assert (training.num_steps, training.num_epochs, training.warmup_steps, training.warmup_epochs) == (
        5,
        None,
        1,
        None,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method mocov2", "Unknown method `mocov2`. Known: end_to_end,"),
        ("--method mocov2", "Did you mean `moco`?"),
        ("--recipe cifr", "Method `directpred` has no recipe `cifr`"),
        ("--recipe cifr", "Did you mean `cifar`?"),
        ("--batch_sise 3", "Unknown flag `--batch_sise`. Did you mean `--batch_size`?"),
        ("--method moco --queue_sise=3", "Unknown flag `--queue_sise`. Did you mean `--queue_size`?"),
        ("--batch 3", "Unknown flag `--batch`."),  # no abbreviations
        ("--xyzzy 3", "Unknown flag `--xyzzy`. `--help` lists them all."),
        ("--batch_size many", "`--batch_size` must be a whole number, got 'many'."),
        ("--weight_decay much", "`--weight_decay` must be a number, got 'much'."),
        ("--optimizer sdg", "`--optimizer` must be one of sgd, lars, adamw, got `sdg`. Did you mean `sgd`?"),
        ("--compile maybe", "`--compile` must be true or false."),
        ("--num_steps", "`--num_steps` expected one argument."),
        ("--model_args 3", "`--model_args` must be a JSON object"),
        ("--model_args {", "`--model_args` must be a JSON object"),
        ("stray", "`stray` belongs to no flag."),
        ("--batch_size 0", "`batch_size` must be at least 1, got 0."),
        ("--rho 1.5", "`rho` must be in [0, 1)"),
        ("--image_size 3", "`image_size` must be at least 8 pixels, got 3."),
        ("--num_steps 3 --num_epochs 2", "`num_epochs` and `num_steps` exclude each other."),
    ],
)
def test_wrong_input_is_answered_in_a_sentence(words: str, message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop, errors_for_users():
        parse("--output_dir", "x", *words.split())
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "Traceback" not in printed


def test_messages_are_told_from_bugs(capsys: pytest.CaptureFixture):
    in_the_package: dict[str, Any] = {"__name__": "hf_ssl.somewhere", "torch": torch}
    exec("def wrong(): int('three')\ndef product(): torch.zeros(2) @ torch.zeros(3)", in_the_package)
    for bug in (
        in_the_package["wrong"],
        in_the_package["product"],
        lambda: int("three"),  # a ValueError that nobody wrote for the user
        lambda: torch.zeros(2) @ torch.zeros(3),  # a RuntimeError out of compiled code
        lambda: len(3),  # pyright: ignore[reportArgumentType]
        lambda: {}["key"],
        lambda: dataclasses.replace(3),  # pyright: ignore[reportArgumentType]  # raised by another package
    ):
        with pytest.raises((ValueError, RuntimeError, TypeError, KeyError)), errors_for_users():
            bug()
    assert capsys.readouterr().err == ""
    for error in (lambda: TrainingSettings(), lambda: METHODS["moco"].config_class(queue_sise=3)):
        with pytest.raises(SystemExit), errors_for_users():
            error()


def test_errors_of_types_and_files(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit), errors_for_users():
        METHODS["byol"].config_class(ema_momentum=1)
    assert "`ema_momentum` must be float, got int (value: 1)." in capsys.readouterr().err
    with pytest.raises(SystemExit), errors_for_users():
        (tmp_path / "missing" / "file").write_text("")
    assert "No such file or directory: `" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop, errors_for_users():
        raise KeyboardInterrupt
    assert stop.value.code == 130


def test_other_processes_let_the_first_one_speak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    waited = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    with pytest.raises(SystemExit), errors_for_users():
        TrainingSettings()
    assert waited and waited[0] > 1
    assert capsys.readouterr().err.startswith("error: (process 1) `output_dir`")


SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_answers_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage") and err == ""
