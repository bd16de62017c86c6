"""Of a local path only the last part is told, in whatever it stands."""

import shlex
from pathlib import Path

import pytest

from hf_ssl.private import is_private, public_command, public_path, public_place, without_paths


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/data/secret-user/photos", "photos"),
        ("/data/secret-user/photos/", "photos"),
        ("~/photos", "photos"),
        ("~secret-user/photos", "photos"),
        ("../secret-user/photos", "photos"),
        ("C:\\Users\\secret-user\\birds", "birds"),
        ("\\\\server\\secret-user\\birds", "birds"),
        ("file:///data/secret-user/photos", "photos"),
        ("/data/secret-user/birds.tar", "birds.tar"),
        ("/data/secret-user/**/*.jpg", "**/*.jpg"),
        ("/data/secret-user/first/encoder", "first"),
        ("random:/data/secret-user/first", "random:first"),
        ("local-dir:/data/secret-user/first/encoder", "local-dir:first"),
        ("/data/secret-user/first/checkpoints/step-000500", "step-000500"),
        ("/home/secret-user", "FOLDER"),  # the name of the folder is the user's
        ("/Users/secret-user/", "FOLDER"),
        ("C:\\Users\\secret-user", "FOLDER"),
        ("~secret-user", "FOLDER"),
        ("/home/secret-user/encoder", "encoder"),
        ("/", "FOLDER"),
        ("..", "FOLDER"),
    ],
)
def test_the_last_part_of_a_private_path(path, last):
    assert is_private(path) and public_path(path) == last
    assert without_paths({"a": [path, 1, None], "b": (path,)}) == {"a": [last, 1, None], "b": (last,)}


@pytest.mark.parametrize(
    "text",
    ["photos", "runs/first", "ORG/NAME", "hf://datasets/org/name", "https://host/a/b", "shapes", "1/2", "*.jpg", ""]
    + ["s3://bucket/a", "photos/**", "timm/resnet50.a1_in1k", "Complete collapse at step 5: a spread of 0/1.", "a..b"],
)
def test_what_tells_nothing_of_the_machine_stays(text):
    assert not is_private(text) and without_paths(text) == text and public_command(text) == text


def test_folders_of_the_user_are_private_also_where_they_are_relative(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    assert is_private("shared/alice/runs") and not is_private("alice/model")  # which may be a repository
    assert public_path("/nfs/people/alice") == "FOLDER"


def test_a_path_within_a_text():
    assert without_paths("no access to /data/secret-user/a.png, twice") == "no access to a.png, twice"


COMMANDS = [
    (
        "hf-ssl pretrain --dataset /data/secret-user/photos --output_dir /data/secret-user/run --seed 1",
        "hf-ssl pretrain --dataset FOLDER --output_dir FOLDER --seed 1",
    ),
    (
        "ACCELERATE_USE_CPU=true accelerate launch --config_file ~/c.yaml /data/secret-user/pretrain.py --resume=../x",
        "ACCELERATE_USE_CPU=true accelerate launch --config_file c.yaml pretrain.py --resume=FOLDER",
    ),
    (
        """hf-ssl pretrain --data_files '{"train": ["/data/secret-user/a b/*.jpg"]}' --dataset '/x/a b/c.csv'""",
        """hf-ssl pretrain --data_files '{"train": ["*.jpg"]}' --dataset c.csv""",
    ),
    (
        "hf_ssl.evaluate('/data/secret-user/run', dataset=\"/it's/secret-user\", split='test', k=5, labels=<Dataset>)",
        "hf_ssl.evaluate('FOLDER', dataset='FOLDER', split='test', k=5, labels=<Dataset>)",
    ),
    ("hf-ssl evaluate 'it is not /data/secret-user/x", "hf-ssl evaluate 'it is not FOLDER"),
    ("hf-ssl evaluate random:/data/secret-user/x", "hf-ssl evaluate random:FOLDER"),
    (
        "accelerate launch scripts/pretrain.py --dataset ORG/NAME --output_dir acme/runs/x --resume=acme/x",
        "accelerate launch scripts/pretrain.py --dataset ORG/NAME --output_dir x --resume=x",
    ),
    (
        "accelerate launch --config_file acme/c.yaml acme/train.py --encoder timm/resnet50.a1_in1k --output_dir x",
        "accelerate launch --config_file c.yaml train.py --encoder timm/resnet50.a1_in1k --output_dir x",
    ),
    (
        "hf-ssl evaluate clients/acme/runs/x/encoder --dataset ORG/NAME --dataset_revision refs/convert/parquet",
        "hf-ssl evaluate x --dataset ORG/NAME --dataset_revision refs/convert/parquet",
    ),
    ("hf-ssl evaluate random:clients/acme/x --repo_id ORG/NAME", "hf-ssl evaluate random:x --repo_id ORG/NAME"),
    (
        "hf_ssl.pretrain('moco', encoder='hf_hub:org/a', start_from='org/a/pretraining', output_dir='acme/x')",
        "hf_ssl.pretrain('moco', encoder='hf_hub:org/a', start_from='org/a/pretraining', output_dir='x')",
    ),
    (
        "torchrun --nnodes 2 --rdzv-endpoint=node7.acme.internal:29500 --master_addr 10.1.2.3 scripts/pretrain.py",
        "torchrun --nnodes 2 --rdzv-endpoint=HOST --master_addr HOST scripts/pretrain.py",
    ),
    (
        "accelerate launch --main_process_ip 10.1.2.3 --main_process_port 29500 scripts/pretrain.py --dataset ORG/N",
        "accelerate launch --main_process_ip HOST --main_process_port 29500 scripts/pretrain.py --dataset ORG/N",
    ),
    ("hf-ssl evaluate org/a@refs/pr/1 --dataset s3://a/b/c", "hf-ssl evaluate org/a@refs/pr/1 --dataset s3://a/b/c"),
    (
        """hf-ssl pretrain --dataset ORG/NAME --data_files '{"train": "a/b/c/**"}' --data_dir a/b/c""",
        """hf-ssl pretrain --dataset ORG/NAME --data_files '{"train": "a/b/c/**"}' --data_dir a/b/c""",
    ),
]


@pytest.mark.parametrize(("command", "public"), COMMANDS)
def test_a_command_shows_placeholders(command, public):
    assert public_command(command) == public
    assert public_command(public) == public


def test_a_local_data_set_is_not_shown_like_one_of_the_hub():
    command = "hf-ssl pretrain --dataset data/c10 --repo_id data/c10 --output_dir c10"
    assert public_command(command, "data/c10", "hub") == command
    public = public_command(command, "data/c10", "local")
    assert shlex.split(public)[2:] == ["--dataset", "FOLDER", *shlex.split(command)[4:]]
    call = "hf_ssl.pretrain(dataset='data/c10', repo_id='data/c10')"
    assert public_command(call, "data/c10", "local") == "hf_ssl.pretrain(dataset='FOLDER', repo_id='data/c10')"
    assert public_command("hf-ssl pretrain --dataset photos", "photos", "local").endswith("--dataset photos")


def test_what_was_opened_as_a_folder_is_not_shown_like_a_repository():
    command = "hf-ssl evaluate acme/x random:acme/x acme/y --dataset ORG/NAME"
    assert public_command(command) == command
    shown = "hf-ssl evaluate x random:x acme/y --dataset ORG/NAME"
    assert public_command(command, local=["acme/x"]) == public_command(command, local=["local-dir:acme/x"]) == shown
    call = "hf_ssl.pretrain(start_from='acme/x', repo_id='acme/x')"
    assert public_command(call, local=["acme/x"]) == "hf_ssl.pretrain(start_from='x', repo_id='acme/x')"


@pytest.mark.parametrize(
    ("command", "public"),
    [
        (
            "hf-ssl extract x --dataset . --data_dir clients/acme/birds",
            "hf-ssl extract x --dataset . --data_dir FOLDER",
        ),
        ("hf-ssl extract x --data_files=clients/acme/a.parquet", "hf-ssl extract x --data_files=a.parquet"),
        (
            """hf-ssl extract x --data_files '{"train": ["acme/a/*.jpg", "acme/b.jpg"]}' --data_dir photos""",
            """hf-ssl extract x --data_files '{"train": ["*.jpg", "b.jpg"]}' --data_dir photos""",
        ),
        (
            "hf_ssl.pretrain('simsiam', dataset='.', data_files={'train': ['acme/a.jpg']}, output_dir='a')",
            "hf_ssl.pretrain('simsiam', dataset='.', data_files={'train': ['a.jpg']}, output_dir='a')",
        ),
    ],
)
def test_files_of_a_local_data_set_are_shown_without_the_folders_above_them(command, public):
    assert public_command(command, ".", "local") == public
    assert public_command(public, ".", "local") == public
    assert public_command(command, "ORG/NAME", "hub") == command


def test_examples_name_a_folder_without_those_above_it():
    assert public_place(Path("runs/first/encoder")) == "runs/first/encoder"
    assert public_place(Path("clients/acme/first/encoder")) == "./first/encoder"
    assert public_place(Path("/data/secret-user/first/encoder")) == "./first/encoder"
    assert public_place(Path("/data/secret-user/features")) == "./features"
