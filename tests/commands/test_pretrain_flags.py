"""The command line of pretraining: its flags follow the method, its values the recipe and what was typed."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hf_ssl.commands import main
from hf_ssl.commands.flags import flags_of
from hf_ssl.commands.pretrain import COMMAND, GROUPS
from hf_ssl.commands.resolve import INHERITED, Request, request_of
from hf_ssl.data.settings import DataSettings
from hf_ssl.data.views.cpu import VIEW_RECIPES
from hf_ssl.errors import UserError
from hf_ssl.methods import METHODS
from hf_ssl.training.arguments import TrainingSettings


def request(folder: Path, *words: str) -> Request:
    return request_of(COMMAND.parse(["--output_dir", str(folder / "run"), "--dataset", "digits", *words]))


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_a_command(method: str, tmp_path: Path):
    for recipe, values in METHODS[method].recipes.items():
        asked = request(tmp_path, "--method", method, "--recipe", recipe, *(["--batch_size", "8"]))
        assert asked.method is METHODS[method] and asked.start is None
        settings: dict[str, Any] = {**vars(asked.training), **vars(asked.data), **vars(asked.config)}
        for name, value in {**values, "batch_size": 8}.items():
            assert settings[name] == value or list(settings[name]) == list(value), name
        assert asked.training.recipe == recipe
        assert (asked.data.view_recipe or asked.method.view_recipe) in VIEW_RECIPES


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_every_setting(method: str, capsys: pytest.CaptureFixture):
    assert main(["pretrain", "--method", method, "--help"]) == 0
    text = capsys.readouterr().out
    kinds = (METHODS[method].config_class, DataSettings, TrainingSettings)
    for field in (field for kind in kinds for field in flags_of(kind, without=sorted(INHERITED))):
        assert f"--{field.name}" in text
    headings = [text.index(f"\n{name}:") for name in ("most used", f"settings of {method}", "data", *GROUPS)]
    assert headings == sorted(headings)
    first = text[headings[0] : headings[1]]
    assert [line.split()[0].strip(",") for line in first.splitlines() if line.startswith("  --")] == [
        "--method", "--dataset", "--output_dir", "--encoder", "--recipe", "--num_epochs", "--max_hours",
        "--batch_size", "--image_size", "--resume",
    ]  # fmt: skip
    assert text.count("    hf-ssl pretrain") + text.count("    accelerate launch -m hf_ssl pretrain") == 2
    assert f"Recipes of {method}: auto, " in text and "--no_channels_last" not in text


def test_each_training_setting_stands_under_one_heading():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(
        field.name for field in fields(TrainingSettings)
    )


def test_auto_says_what_it_chose_only_when_all_else_is_right(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for words in (["--batch_size", "0"], ["--knn_split", "nonsense"], ["--license", "My Licence"]):
        with caplog.at_level("INFO", "hf_ssl"), pytest.raises(UserError):
            request(tmp_path, "--encoder", "test_resnet", *words)
    assert "auto, for" not in caplog.text and not (tmp_path / "run" / "recipe.json").exists()
    with caplog.at_level("INFO", "hf_ssl"):
        request(tmp_path, "--encoder", "test_resnet")
    assert "auto, for" in caplog.text and (tmp_path / "run" / "recipe.json").exists()


def test_spellings(tmp_path: Path):
    words = ["--encoder", "resnet18", "--batch-size", "3", "--no_channels_last", "--recipe=cifar"]
    asked = request(tmp_path, *words)
    assert (asked.config.architecture, asked.training.batch_size) == ("resnet18", 3)
    assert asked.training.channels_last is False and asked.training.recipe == "cifar"
    assert request(tmp_path, "--architecture", "resnet18").config.architecture == "resnet18"


def test_steps_replace_the_epochs_of_a_recipe(tmp_path: Path):
    words = ["--recipe", "paper-imagenet", "--num_steps", "5", "--warmup_steps", "1", "--batch_size", "8"]
    training = request(tmp_path, *words).training
    assert (training.num_steps, training.num_epochs) == (5, None)
    assert (training.warmup_steps, training.warmup_epochs) == (1, None)


@pytest.mark.parametrize(
    ("words", "warmup"),
    [
        ("--recipe cifar", "a tenth"),
        ("--num_epochs 20", (2.0, None)),
        ("--num_steps 300", (None, 30)),
        ("--recipe paper-imagenet --num_steps 20 --batch_size 8", (None, 2)),
        ("--num_steps 300 --warmup_steps 7", (None, 7)),
        ("--num_epochs 20 --warmup_epochs 0.5", (0.5, None)),
    ],
)
def test_from_loaded_weights_the_warmup_is_a_tenth_of_the_run(words: str, warmup: Any, tmp_path: Path):
    METHODS["simsiam"](METHODS["simsiam"].config_class(architecture="test_resnet", image_size=32)).save_pretrained(
        tmp_path / "former"
    )
    training = request(tmp_path, "--start_from", str(tmp_path / "former"), *words.split()).training
    expected = (training.num_epochs and training.num_epochs / 10, None) if warmup == "a tenth" else warmup
    assert (training.warmup_epochs, training.warmup_steps) == expected


def test_what_auto_tells_is_of_the_weights_that_are_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    METHODS["simsiam"](METHODS["simsiam"].config_class(architecture="test_resnet", image_size=40)).save_pretrained(
        tmp_path / "former"
    )
    with caplog.at_level("INFO", "hf_ssl"):
        request(tmp_path, "--start_from", str(tmp_path / "former"))
    assert "test_resnet at 40 px" in caplog.text


def test_a_run_of_another_method_does_not_go_on(tmp_path: Path):
    for method in ("directpred", "moco"):
        record = {"method": method, "config": {}, "data": {}, "training": {}, "progress": {}}
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        (tmp_path / "run" / "recipe.json").write_text('{"rho": 0.3}')
        is_ours = "is of the method `directpred`, and `resume` cannot go on with it as `moco`"
        with pytest.raises(UserError, match=is_ours if method == "directpred" else "is not what `recipe` auto chose"):
            request(tmp_path, "--method", "moco", "--resume", "auto")


def test_hours_replace_the_epochs_of_a_recipe(tmp_path: Path):
    training = request(tmp_path, "--max_hours", "2", "--batch_size", "8").training
    assert (training.num_steps, training.num_epochs, training.max_hours) == (None, None, 2.0)
    assert request(tmp_path, "--max_hours", "2", "--num_epochs", "3", "--batch_size", "8").training.num_epochs == 3.0


def test_auto_is_the_default_and_what_it_chose_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="hf_ssl"):
        asked = request(tmp_path)
    assert asked.training.recipe == "auto" and asked.config.architecture == "test_resnet"
    assert "recipe   auto, for 1,437 images of about 8 px and no GPU" in caplog.text
    # On another machine `auto` might choose otherwise: a run that resumes takes what it began with.
    (tmp_path / "run" / "recipe.json").write_text('{"architecture": "resnet18", "batch_size": 4, "num_epochs": 2}')
    resumed = request(tmp_path, "--resume", "auto")
    assert (resumed.config.architecture, resumed.training.batch_size) == ("resnet18", 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method mocov2", "Unknown method `mocov2`. Known: end_to_end,"),
        ("--method mocov2", "Did you mean `moco`?"),
        ("--recipe cifr", "Method `directpred` has no recipe `cifr`"),
        ("--recipe cifr", "Did you mean `cifar`?"),
        ("--batch_sise 3", "Unknown flag `--batch_sise`. Did you mean `--batch_size`?"),
        ("--temperature 0.1", "Unknown flag `--temperature`. `--help` lists them all."),
        ("--resume auto --change foo", "`change` names the unknown setting `foo`. Leave it out."),
        ("--resume auto --change weight_decya", "`weight_decya`. Did you mean `weight_decay`?"),
        ("--method moco --queue_sise=3", "Unknown flag `--queue_sise`. Did you mean `--queue_size`?"),
        ("--batch 3", "Unknown flag `--batch`."),  # no abbreviations
        ("--xyzzy 3", "Unknown flag `--xyzzy`. `--help` lists them all."),
        ("--batch_size many", "`--batch_size` must be a whole number, got 'many'."),
        ("--weight_decay much", "`--weight_decay` must be a number, got 'much'."),
        (
            "--optimizer sdg",
            "sgd, adamw, lars or a first-order optimizer of timm, got `sdg`. Did you mean `sgd`?",
        ),
        ("--compile=maybe", "`--compile` must be true or false, got 'maybe'."),
        ("--num_steps", "`--num_steps` needs a value."),
        ("--model_args 3", "`--model_args` must be a JSON object"),
        ("stray", "`stray` belongs to no flag."),
        ("--batch_size 0", "`batch_size` must be at least 1, got 0."),
        ("--rho 1.5", "`rho` must be in [0, 1)"),
        ("--image_size 3", "`image_size` must be at least 8 pixels, got 3."),
        ("--num_steps 3 --num_epochs 2", "`num_epochs` and `num_steps` exclude each other."),
        ("--pretrained", "`pretrained` needs `encoder`"),
        ("--start_from x --encoder resnet18", "`start_from` brings its encoder."),
        ('--encoder resnet18 --model_args {"in_chans":1}', "in_chans"),
        ("--encoder vit_small_patch16_224 --image_size 40", "40"),
        ("--knn_split test --label_column kind", "kind"),
        ("--seed 2147483648", "`seed` must be below 2^31"),
        ('--view_settings {"grey_probabilty":0}', "Did you mean `grey_probability`?"),
    ],
)
def test_wrong_input_is_answered_in_a_sentence(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["pretrain", "--dataset", "digits", "--output_dir", str(tmp_path), *words.split()]) == 2
    printed = capsys.readouterr().err
    answer = printed[printed.index("error: ") :]
    assert message in answer
    assert answer.count("\n") == 1 and "Traceback" not in printed


def test_a_method_of_the_users_own_is_checked(tmp_path: Path):
    class Wrong(METHODS["simsiam"]):
        recipes = {"mine": {"batch_sise": 3}}

    class Views(METHODS["simsiam"]):
        recipes = {"mine": {"view_recipe": "moco_v9"}}

    for method, message in (
        (Wrong, "Recipe `mine` of `Wrong` names the unknown setting `batch_sise`. Did you mean `batch_size`?"),
        (Views, "Recipe `mine` of `Views` has the unknown `view_recipe` `moco_v9`. Did you mean `moco_v"),
        (dict, "method"),
    ):
        with pytest.raises(UserError, match=message):
            request_of({"method": method, "dataset": "digits", "output_dir": str(tmp_path)})


def test_no_setting_has_two_homes():
    for method in METHODS.values():
        names = [field.name for kind in (DataSettings, TrainingSettings) for field in fields(kind)]
        names += [field.name for field in flags_of(method.config_class, without=sorted(INHERITED))]
        assert len(names) == len(set(names))
