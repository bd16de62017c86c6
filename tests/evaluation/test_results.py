"""The file of results: what is replaced, what stays, and the table to read."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_ssl.errors import UserError
from hf_ssl.evaluation.results import table_text, update_results


def entry(value, **changes):
    about = {"dataset": "shapes", "split": "test", "label": "shape", "protocol": "knn", "metric": "accuracy"}
    return about | {"value": value, "num_images": 10} | changes


def values_of(path):
    return [result["value"] for result in json.loads(path.read_text())["results"]]


def test_the_same_measurement_is_replaced_and_others_stay(tmp_path):
    path = tmp_path / "encoder" / "results.json"
    update_results(path, [entry(0.1), entry(0.2, label="row"), entry(0.3, protocol="linear")])
    update_results(path, [entry(0.4, split="validation"), entry(0.5), entry(0.6, dataset_config="large")])
    assert values_of(path) == [0.5, 0.2, 0.3, 0.4, 0.6]
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_number_of_fewer_images_does_not_replace_one_of_more(tmp_path):
    path = tmp_path / "results.json"
    full = entry(0.3, settings={"k": 5, "train_images": 90}, baselines={"random": 0.2})
    assert update_results(path, [full, entry(0.2, protocol="clustering", settings={"seed": 0})]) == []
    for fewer in ({"num_images": 1}, {"settings": {"train_images": 89}}):
        assert update_results(path, [full | {"value": 1.0} | fewer, entry(0.4, protocol="linear")]) == [full]
    assert values_of(path) == [0.3, 0.2, 0.4]
    assert update_results(path, [full | {"value": 0.5}, entry(0.6, protocol="clustering", num_images=11)]) == []
    assert values_of(path) == [0.5, 0.6, 0.4]


def test_evaluations_at_the_same_time_keep_all_results(tmp_path):
    path = tmp_path / "results.json"

    def evaluate(number: int) -> None:
        for step in range(20):
            update_results(path, [entry(0.1, label=f"{number} {step}")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(evaluate, range(4)))
    assert len(values_of(path)) == 80
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "results.json"
    for content in ("{", "[1]", '{"accuracy": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="does not hold results"):
            update_results(path, [entry(0.1)])
        assert path.read_text() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "high"}, "`results[1].value` must be a number, got `high`"),
        ({"value": None}, "`results[1].value` must be a number, got None"),
        ({"dataset": ["a"]}, "`results[1].dataset` must be text, got ['a']"),
        ({"settings": "k 5"}, "`results[1].settings` must be a JSON object or none, got `k 5`"),
    ],
)
def test_an_entry_with_values_of_another_kind_is_named(tmp_path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": [entry(1), entry(0.5) | change]}))
    with pytest.raises(UserError) as refused:
        update_results(path, [entry(0.1)])
    assert str(refused.value) == f"`{path}` does not hold results: {message}. Move it away and measure again."


def test_the_table_has_a_column_for_each_label_or_protocol():
    chance = {"shape": 0.1, "row": 0.34}
    raw, own = {"shape": 0.256, "row": 0.9}, {"shape": 0.8, "row": 1.0}
    lines = table_text({"knn": {"raw pixels": raw, "first": own}}, chance).splitlines()
    assert lines[0].split() == ["weighted", "k-NN", "shape", "row"]
    assert [line.split()[-2:] for line in lines[2:5]] == [["10.0", "34.0"], ["25.6", "90.0"], ["80.0", "100.0"]]
    assert len({len(line) for line in lines[:5]}) == 1

    one = {"knn": {"first": {"row": 0.5}}, "linear-luckmatters-best": {"first": {"row": 0.75}}}
    text = table_text(one, {"row": 0.34})
    assert "best epoch*" in text
    assert "chosen on the test split" in text
    assert text.splitlines()[3].split() == ["first", "50.0", "75.0"]


def test_only_accuracies_have_a_chance_level():
    table = {"knn": {"first": {"row": 0.5}}, "clustering-nmi": {"first": {"row": 0.25}}}
    lines = table_text(table, {"row": 0.34}).splitlines()
    assert lines[2].split() == ["most", "frequent", "class", "34.0"]
    assert lines[3].split() == ["first", "50.0", "25.0"]
    assert len({len(line) for line in lines[:4]}) == 1
    labels = {"row": 0.25, "shape": 0.5}
    lines = table_text({"clustering-nmi": {"first": labels}}, {"row": 0.34, "shape": 0.1}).splitlines()
    assert [line.split()[-1] for line in lines[:4]] == ["shape", lines[1], "class", "50.0"]
