"""Flags, help, errors and functions come from settings classes; messages are a sentence, bugs keep their traceback."""

import dataclasses
import importlib
import inspect
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from huggingface_hub.dataclasses import strict

from hf_ssl import commands
from hf_ssl.commands import COMMANDS, errors, main, study
from hf_ssl.commands.command import Command, CommandGroup, call_text, python_function, python_group
from hf_ssl.commands.errors import as_user_errors, errors_for_users
from hf_ssl.commands.flags import flags_of, parse_flags
from hf_ssl.errors import UserError
from hf_ssl.invocation import command_line
from hf_ssl.methods import METHODS
from hf_ssl.settings import checked, descriptions_of


class Shared:
    """What several have.

    Args:
        shared: From the parent's docstring.
    """


@checked
class Everything(Shared):
    """One field of each kind.

    Args:
        place: Given by place.
        word: A word, 100 % of it
            on two lines.
        choice: One of two.
        table: Anything.
        numbers: Several.
        count: At least 1.
        maybe: A number or nothing.
        switch: On by default.
        path: A place.
        shared: What the parent says does not count.

    Raises:
        ValueError: never: this is no field.
    """

    place: str
    word: str = "a"
    choice: Literal["alpha", "beta"] = "alpha"
    table: dict[str, Any] | None = None
    numbers: list[float] | tuple[float, ...] = (0.5, 1.0)
    count: int = 1
    maybe: float | None = 0.1
    switch: bool = True
    path: Path | None = None
    shared: int = 0

    def validate_count(self) -> None:
        """A rule."""
        if self.count < 1:
            raise UserError(f"`count` must be at least 1, got {self.count}.")
        if self.word == "bug":
            int("three")


@dataclasses.dataclass(frozen=True)
class Echo:
    """What came in.

    Args:
        settings: The settings.
        called_as: How.
    """

    settings: Everything
    called_as: str
    exit_code: int = 0

    def __str__(self) -> str:
        return f"word {self.settings.word}"


def run(settings: Everything) -> Echo:
    """Return the settings."""
    if settings.word == "file":
        Path("no/such/folder").iterdir().__next__()
    return Echo(settings, command_line(), exit_code=3 if settings.word == "three" else 0)


TEXT = """Do everything.

    hf-ssl everything here --word b

More about it.
"""
COMMAND = Command("everything", Everything, run, TEXT, words=("place",), first=("word",), groups={"rare": ("path",)})
FIELDS = {field.name for field in dataclasses.fields(Everything)}


def parse(*words: str) -> dict[str, Any]:
    return vars(COMMAND.parse(["here", *words]))


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch):
    """`main` knows the command."""
    module = type(sys)("hf_ssl.commands.everything")
    module.COMMAND = COMMAND  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "everything", "do everything")


def test_types_of_the_command_line():
    assert parse() == vars(Everything(place="here"))
    given = parse(
        "--word", "b", "--choice=beta", "--table", '{"a": {"b": [1]}}', "--numbers", "1", "2", "--maybe", "none",
        "--switch", "false", "--path", "x/y", "--count", "7",
    )  # fmt: skip
    assert given == {
        "place": "here",
        "word": "b",
        "choice": "beta",
        "table": {"a": {"b": [1]}},
        "numbers": [1.0, 2.0],
        "maybe": None,
        "switch": False,
        "path": Path("x/y"),
        "count": 7,
        "shared": 0,
    }
    assert [type(given[name]) for name in ("path", "count")] == [type(Path()), int]
    assert parse("--maybe", "2")["maybe"] == 2.0
    assert parse("--maybe", "-2e-1")["maybe"] == -0.2
    assert parse("--word", "none")["word"] == "none"  # a text that cannot be absent


def test_only_what_is_typed_is_returned():
    fields = {"all": flags_of(Everything)}
    assert parse_flags(["--count", "1"], fields, program="p", description="d") == {"count": 1}
    assert [field.name for field in flags_of(Everything, without=("word", "place"))] == [
        name for name in vars(Everything(place="")) if name not in ("word", "place")
    ]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--switch", True),
        ("--no_switch", False),
        ("--no-switch", False),
        *((f"--switch {word}", True) for word in ("true", "True", "yes", "1")),
        *((f"--switch {word}", False) for word in ("false", "FALSE", "no", "0")),
        ("--switch=false", False),
        ("--switch=true", True),
        ("--no_switch --switch", True),  # the last one counts
        ("--switch --word b", True),
    ],
)
def test_spellings_of_a_switch(words: str, value: bool):
    assert parse(*words.split())["switch"] is value


def test_a_switch_may_stand_before_a_word_that_is_given_by_place():
    assert COMMAND.parse(["--no_switch", "here"]).place == "here"
    assert COMMAND.parse(["--switch", "false", "here", "--word", "b"]).place == "here"


def test_dashes_and_equals_signs():
    @checked
    class Long:
        """Names of several words.

        Args:
            batch_size: A number.
            architecture: A name.
        """

        batch_size: int = 1
        architecture: str = "a"

    command = Command("long", Long, run, "Text.")
    for words in (["--batch-size", "3"], ["--batch_size", "3"], ["--batch-size=3"], ["--batch_size=3"]):
        assert command.parse(words).batch_size == 3
    assert command.parse(["--encoder", "b"]).architecture == "b"
    assert command.parse(["--architecture=c"]).architecture == "c"
    with pytest.raises(UserError, match="Did you mean `--encoder`"):
        command.parse(["--encodr", "b"])


def test_help_comes_from_the_docstring(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        COMMAND.parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "usage: hf-ssl everything PLACE [--FLAG VALUE ...]\n\nDo everything.\n\n    hf-ssl everything"
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "--word TEXT A word, 100 % of it on two lines. [a]" in lines
    assert "--switch true|false On by default. [true]" in lines
    assert "--numbers X ... Several. [0.5 1.0]" in lines
    assert "--choice alpha|beta One of two. [alpha]" in lines
    assert "--path PATH A place." in lines
    assert "PLACE Given by place." in lines
    headings = [line for line in lines if line in ("most used:", "rare:", "more:")]
    assert headings == ["most used:", "rare:", "more:"]
    for name in FIELDS - {"place"}:
        assert text.count(f"  --{name} ") == 1  # one spelling, one place


def test_descriptions_of_parents_are_inherited_and_overridden():
    assert descriptions_of(Everything)["shared"] == "What the parent says does not count."
    assert descriptions_of(Shared) == {"shared": "From the parent's docstring."}


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
        flags_of(Forgetful)


WRONG_WORDS = [
    ("--wrod b", "Unknown flag `--wrod`. Did you mean `--word`?"),
    ("--swich", "Unknown flag `--swich`. Did you mean `--switch`?"),
    ("--wor b", "Unknown flag `--wor`."),  # no abbreviations
    ("--xyzzy 3", "Unknown flag `--xyzzy`. `--help` lists them all."),
    ("--encoder x", "Unknown flag `--encoder`."),  # another name of a field that is not there
    ("--place here", "`--place` is no flag here. Give its value without it, as the usage in `--help` shows."),
    ("--no_word", "Unknown flag `--no_word`. Did you mean `--word`?"),
    ("--no_switch=true", "`--no_switch` takes no value. Write `--switch true` or `--no_switch`."),
    ("--count many", "`--count` must be a whole number, got 'many'."),
    ("--count 2.5", "`--count` must be a whole number, got '2.5'."),
    ("--maybe much", "`--maybe` must be a number, got 'much'."),
    ("--maybe nan", "`maybe` must be a finite number, got nan."),
    ("--numbers 1 inf", "`numbers` must be finite numbers, got inf."),
    ("--choice bata", "`choice` must be one of alpha, beta, got `bata`. Did you mean `beta`?"),
    ("--switch=maybe", "`--switch` must be true or false, got 'maybe'."),
    ("--count", "`--count` needs a value."),
    ("--table 3", "`--table` must be a JSON object"),
    ("--table {", "`--table` must be a JSON object"),
    ("stray", "`stray` belongs to no flag."),
    ("-x", "`-x` belongs to no flag."),
    ("--count 0", "`count` must be at least 1, got 0."),
]


@pytest.mark.parametrize(("words", "message"), WRONG_WORDS)
def test_wrong_input_is_answered_in_a_sentence(
    everything: None, words: str, message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["everything", "here", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "Traceback" not in printed


WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({}, "`place` is needed: Given by place."),
    ({"place": "x", "wrod": 1}, "`Everything` has no setting `wrod`. Did you mean `word`?"),
    ({"place": "x", "xyzzy": 1}, "`Everything` has no setting `xyzzy`. Leave it out."),
    ({"place": 3}, "`place` must be text, got 3."),
    ({"place": "x", "count": 2.5}, "`count` must be a whole number, got 2.5."),
    ({"place": "x", "count": True}, "`count` must be a whole number, got True."),
    ({"place": "x", "count": "2"}, "`count` must be a whole number, got `2`."),
    ({"place": "x", "count": 0}, "`count` must be at least 1, got 0."),
    ({"place": "x", "choice": "betta"}, "`choice` must be one of alpha, beta, got `betta`. Did you mean `beta`?"),
    ({"place": "x", "switch": 1}, "`switch` must be true or false, got 1."),
    ({"place": "x", "switch": None}, "`switch` must be true or false, got None."),
    ({"place": "x", "maybe": "much"}, "`maybe` must be a number or none, got `much`."),
    ({"place": "x", "maybe": float("inf")}, "`maybe` must be a finite number, got inf."),
    ({"place": "x", "numbers": ["a"]}, "`numbers` must be a list of numbers, got ['a']."),
    ({"place": "x", "table": [1]}, "`table` must be a JSON object or none, got [1]."),
    ({"place": "x", "path": 3}, "`path` must be a path or none, got 3."),
]


@pytest.mark.parametrize(("values", "message"), WRONG_VALUES)
def test_settings_are_checked_wherever_they_are_made(values: dict[str, Any], message: str):
    for make in (Everything, python_function(COMMAND)):
        with pytest.raises(UserError) as error:
            make(**values)
        assert str(error.value) == message


def test_values_that_fit_are_taken_as_the_type_that_was_declared():
    made = Everything(place="x", maybe=2, numbers=[1, 2], path="a/b")  # pyright: ignore[reportArgumentType]
    assert (made.maybe, made.numbers, made.path) == (2.0, [1.0, 2.0], Path("a/b"))
    assert type(made.maybe) is float and all(type(number) is float for number in made.numbers)
    made.maybe = 3
    assert type(made.maybe) is float
    with pytest.raises(UserError, match="`count` must be a whole number, got 1.5"):
        made.count = 1.5  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        Everything("x")  # pyright: ignore[reportCallIssue]


def test_an_error_in_a_rule_that_is_no_message_is_a_bug():
    with pytest.raises(ValueError, match="invalid literal") as error:
        Everything(place="x", word="bug")
    assert not isinstance(error.value, UserError)


def test_messages_are_told_from_bugs(everything: None, capsys: pytest.CaptureFixture[str]):
    in_the_package: dict[str, Any] = {"__name__": "hf_ssl.somewhere", "torch": torch}
    exec(
        "def wrong(): int('three')\n"
        "def product(): torch.zeros(2) @ torch.zeros(3)\n"
        "def on_purpose(): raise ValueError('a contract between two functions')\n"
        "def state(): raise RuntimeError('cannot be')",
        in_the_package,
    )
    bugs: list[Callable[[], Any]] = [
        in_the_package["wrong"],
        in_the_package["product"],
        in_the_package["on_purpose"],  # a message is a `UserError`, and nothing else
        in_the_package["state"],
        lambda: int("three"),
        lambda: torch.zeros(2) @ torch.zeros(3),
        lambda: len(3),  # pyright: ignore[reportArgumentType]
        lambda: {}["key"],
        lambda: dataclasses.replace(3),  # pyright: ignore[reportArgumentType]  # raised by another package
    ]
    for bug in bugs:
        for door in (errors_for_users, as_user_errors):
            with pytest.raises((ValueError, RuntimeError, TypeError, KeyError)) as error, door():
                bug()
            assert not isinstance(error.value, UserError)
    with pytest.raises(ValueError, match="invalid literal"):
        main(["everything", "here", "--word", "bug"])
    assert capsys.readouterr().err == ""


def test_settings_of_a_method_are_messages(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit), errors_for_users():
        METHODS["byol"].config_class(image_size="x")  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().err == "error: `image_size` must be a whole number, got `x`.\n"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_size", "x", "`image_size` must be int, got str (value: 'x')."),
        ("queue_size", None, "`queue_size` must be int, got NoneType (value: None)."),
        ("projector_hidden_dim", "x", "`projector_hidden_dim` must be int or none, got 'x'."),
        ("projector", "x", "`projector` must be one of ('linear', 'mlp'), got x."),
        ("image_std", ["x"], "`image_std` must be list[float] or tuple[float, ...], got ['x']."),
    ],
)
def test_what_a_config_of_another_package_refuses_is_a_message(name: str, value: Any, message: str):
    config = METHODS["moco"].config_class()
    with pytest.raises(UserError) as error, as_user_errors():
        setattr(config, name, value)
    assert str(error.value) == message


def test_an_item_of_another_type_is_named():
    @strict
    @dataclasses.dataclass
    class Layers:
        widths: list[int]

    with pytest.raises(UserError, match=r"^`widths\[1\]` must be int, got str \(value: 'x'\)\.$"), as_user_errors():
        Layers([3, "x"])  # pyright: ignore[reportArgumentType]


def test_errors_of_files_and_the_keyboard(everything: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit), errors_for_users():
        (tmp_path / "missing" / "file").write_text("")
    assert "No such file or directory: `" in capsys.readouterr().err
    assert main(["everything", "here", "--word", "file"]) == 2
    assert capsys.readouterr().err == "error: No such file or directory: `no/such/folder`.\n"
    with pytest.raises(UserError, match="No such file or directory: `no/such/folder`"):
        python_function(COMMAND)("here", word="file")
    with pytest.raises(SystemExit) as stop, errors_for_users():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_debug_keeps_the_traceback_of_every_error(everything: None):
    with pytest.raises(UserError, match="`count` must be at least 1"):
        main(["everything", "here", "--count", "0", "--debug"])
    with pytest.raises(UserError, match="Unknown command `evrything`"):
        main(["--debug", "evrything"])
    with pytest.raises(FileNotFoundError):
        main(["everything", "--debug", "here", "--word", "file"])
    with pytest.raises(KeyboardInterrupt), errors_for_users(debug=True):
        raise KeyboardInterrupt


def test_tokens_stay_out_of_messages(capsys: pytest.CaptureFixture[str]):
    secret = "hf_" + "aB3" * 11
    with pytest.raises(SystemExit), errors_for_users():
        raise UserError(f"`repo_id` {secret} is not\n  known.")
    assert capsys.readouterr().err == "error: `repo_id` *** is not known.\n"


def test_other_processes_let_the_first_one_speak(
    everything: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    waited = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    assert main(["everything"]) == 2
    assert waited and waited[0] > 1
    assert capsys.readouterr().err == "error: (process 1) `place` is needed: Given by place.\n"
    assert main(["everything", "here"]) == 0
    assert capsys.readouterr().out == ""  # the result is the first process's to print


def test_a_command_prints_its_result_and_ends_with_its_code(everything: None, capsys: pytest.CaptureFixture[str]):
    assert main(["everything", "here", "--word", "b"]) == 0
    assert capsys.readouterr().out == "word b\n"
    assert main(["everything", "here", "--word", "three"]) == 3


def test_the_list_of_commands(capsys: pytest.CaptureFixture[str]):
    for words in (["--help"], ["-h"], [], ["help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {name.ljust(14)}  {line}\n" in text for name, line in COMMANDS.items())
    assert COMMANDS["study"].endswith(f": {', '.join(study.COMMAND.kinds)}")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hf_ssl ")
    assert main(["evalate"]) == 2
    assert "Unknown command `evalate`. Did you mean `evaluate`?" in capsys.readouterr().err
    assert main(["publish-metric", "rank_me"]) == 2
    assert "`repo_id` is needed" in capsys.readouterr().err


@pytest.mark.parametrize("start", [["-c", "import sys; sys.argv[0] = 'hf-ssl'; {}"], ["-m", "hf_ssl"]])
def test_help_starts_without_torch(start: Sequence[str]):
    words = [word.format("from hf_ssl.commands import program; program()") for word in start]
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("Pretrain image encoders")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hf_ssl.commands" in imported
    assert not imported & {"torch", "timm", "transformers", "datasets", "numpy"}


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_shows_its_most_used_flags_first_and_two_examples(word: str, capsys: pytest.CaptureFixture[str]):
    found = importlib.import_module(f"hf_ssl.commands.{word}").COMMAND
    kinds = found.kinds if isinstance(found, CommandGroup) else {"": found}
    for kind, command in kinds.items():
        name, least = f"{word} {kind}".strip(), 1 if kind else 2
        assert command.name == name
        assert main([*name.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: hf-ssl {name}")
        assert sum(f"hf-ssl {name}" in line or f"hf_ssl {name}" in line for line in text.splitlines()[1:]) >= least, (
            name
        )
        if not isinstance(command, Command):  # of pretraining: its flags depend on the method
            continue
        assert len(command.first) <= 10, name
        fields = {field.name for field in dataclasses.fields(command.settings)}
        grouped = [flag for group in (command.groups or {}).values() for flag in group]
        assert {*command.words, *grouped} <= fields, name
        assert len(grouped) == len(set(grouped)), name
        for field in fields - set(command.words):
            assert text.count(f"  --{field} ") == 1, (name, field)


SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))
_TOOLS = ("gpu_check", "model_cards")  # for those who work on the package, from a clone


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_answers_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage") and err == ""
    if path.stem not in _TOOLS:
        assert len(path.read_text().splitlines()) <= 12  # a door: what it does is in the package


def test_the_function_has_the_flags_as_arguments():
    function = python_function(COMMAND)
    parameters = inspect.signature(function).parameters
    assert list(parameters)[0] == "place" and set(parameters) == FIELDS
    assert parameters["place"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert parameters["place"].default is inspect.Parameter.empty
    assert {parameter.kind for name, parameter in parameters.items() if name != "place"} == {
        inspect.Parameter.KEYWORD_ONLY
    }
    assert parameters["numbers"].default == (0.5, 1.0)
    assert (function.__name__, function.__module__) == ("everything", "hf_ssl")
    text = function.__doc__ or ""
    assert text.startswith("Do everything.\n\nThe same as `hf-ssl everything`.\n\nArgs:\n    place: Given by place.\n")
    assert "    word: A word, 100 % of it on two lines.\n" in text
    assert "Returns:\n    Echo: What came in.\n" in text and "Raises:\n    UserError: " in text
    assert python_function(dataclasses.replace(COMMAND, function="do")).__name__ == "do"


def test_the_function_returns_the_result_and_prints_nothing(capsys: pytest.CaptureFixture[str]):
    function = python_function(COMMAND)
    result = function("here", maybe=None, path=Path("x"))
    assert (result.settings.place, result.settings.maybe) == ("here", None)
    assert result.called_as == "hf_ssl.everything(place='here', maybe=None, path='x')"
    assert function(place="there").settings.place == "there"
    assert capsys.readouterr().out == ""
    with pytest.raises(TypeError, match="takes 1 arguments by position, got 2"):
        function("here", "there")
    with pytest.raises(TypeError, match="got `place` by position and by name"):
        function("here", place="there")


def test_a_call_as_text():
    values = {"a": "x", "b": [1, (2.5,)], "c": {"k": None, "o": object()}, "d": True, "e": torch.zeros(2)}
    assert call_text("f", values) == "hf_ssl.f(a='x', b=[1, (2.5,)], c={'k': None, 'o': <object>}, d=True, e=<Tensor>)"


GROUP = CommandGroup("many", "Do one of many.", {"every_thing": dataclasses.replace(COMMAND, name="many every_thing")})


def test_a_group_of_commands(capsys: pytest.CaptureFixture[str]):
    assert GROUP.main(["every-thing", "here", "--word", "b"]) == 0
    assert capsys.readouterr().out == "word b\n"
    for words in ([], ["--help"]):
        assert GROUP.main(words) == 0
        assert (
            "usage: hf-ssl many KIND [ARGUMENT ...]\n\nDo one of many.\n\n  every_thing  Do" in capsys.readouterr().out
        )
    with pytest.raises(UserError, match="`many` knows no `everything`. Did you mean `every_thing`"):
        GROUP.main(["everything"])
    function = python_group(GROUP)
    assert function("every_thing", "here", word="b").settings.word == "b"
    with pytest.raises(UserError, match="`many` knows no `xyzzy`. It is one of every_thing."):
        function("xyzzy")
    assert "Kinds:\n    every_thing: Do everything." in (function.__doc__ or "")
    assert commands.COMMANDS.keys() >= {"study", "simulate"}
