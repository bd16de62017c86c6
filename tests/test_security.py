"""What SECURITY.md promises and no room can test alone: no code of others runs, and no secret is kept."""

import ast
import io
import json
import os
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

import hf_ssl
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.hub.export import export_run
from hf_ssl.methods import METHODS

ROOT = Path(__file__).parents[1]
_RUNS_CODE = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
    "joblib.load",
    "os.system",
}
_RUNS_CODE |= {"os.system", "marshal.loads", "shelve.open", "dill.loads", "pd.read_pickle", "pandas.read_pickle"}


def unsafe_calls(text):
    """Calls by which a file could run code that lies in data, with their lines."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe = name in _RUNS_CODE or given.get("shell") == "True"
        unsafe |= name == "torch.load" and given.get("weights_only") != "True"
        unsafe |= any(given.get(word, "False") != "False" for word in ("allow_pickle", "trust_remote_code"))
        if unsafe:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_no_code_of_others_is_loaded():
    files = [*(ROOT / "hf_ssl").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert len(files) > 200
    assert {str(path): calls for path in files if (calls := unsafe_calls(path.read_text(encoding="utf-8")))} == {}


def test_what_loads_code_is_recognised():
    calls = ["torch.load(f)", "os.system(c)", "np.load(f, allow_pickle=True)", "yaml.load(f)"]
    calls += ["torch.load(f, weights_only=False)", "eval(t)", "pickle.loads(b)", "run(c, shell=True)"]
    calls += [
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "eval(t)",
        "pickle.loads(b)",
        "run(c, shell=True)",
    ]
    assert len(unsafe_calls("\n".join(calls))) == len(calls)
    assert unsafe_calls("torch.load(f, weights_only=True); model.eval(); np.load(f); yaml.safe_load(t)") == []


class Code:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
@pytest.mark.parametrize("writer", [torch.save, pickle.dump])
def test_weights_that_hold_code_are_refused(tmp_path, kind, writer):
    folder = tmp_path / "encoder"
    folder.mkdir()
    timm_config = {"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 32, 32]}, "num_classes": 0}
    config = timm_config if kind == "timm" else {"model_type": "resnet", "architectures": ["ResNetModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with (folder / "pytorch_model.bin").open("wb") as file:
        writer({"conv1.weight": Code(tmp_path / "made")}, file)
    with pytest.raises(hf_ssl.UserError, match="could not load the"):
        load_encoder(str(folder), "cpu")
    assert not (tmp_path / "made").exists()


@pytest.fixture
def server():
    """An address at which a parquet file lies."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    image, table = io.BytesIO(), io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(image, "PNG")
    rows = [{"image": {"bytes": image.getvalue(), "path": None}, "label": number % 2} for number in range(16)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(table)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            data, start, end = table.getvalue(), 0, len(table.getvalue())
            if "Range" in self.headers:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                start, end = int(first), int(last or end) + 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data[start:end])))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[start:end])

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def test_no_command_keeps_the_password_of_an_address(server, tmp_path, caplog, capfd):
    dataset = f"http://reader:sesame@127.0.0.1:{server.server_address[1]}/train.parquet"
    method = METHODS["simsiam"]
    export_run(
        method(method.config_class(architecture="test_resnet", image_size=16, projection_dim=8)), tmp_path / "x"
    )
    data = {"dataset": dataset, "split": "train", "num_workers": 0}
    with caplog.at_level("INFO"):
        hf_ssl.extract_features(str(tmp_path / "x"), **data, output=tmp_path / "features")
        hf_ssl.analyze([str(tmp_path / "x")], **data, output=tmp_path / "analysis", num_views=2, views=["simclr"])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"features.json", "analysis.json", "README.md"} <= {path.name for path in files}
    assert [path for path in files if b"sesame" in path.read_bytes()] == []
    printed = capfd.readouterr()
    assert "sesame" not in caplog.text + printed.out + printed.err
    assert "http://***@127.0.0.1" in (tmp_path / "features" / "features.json").read_text()
    with pytest.raises(hf_ssl.UserError, match=r"The features in .* are of `http://\*\*\*@127"):
        hf_ssl.search(index=str(tmp_path / "features"), outliers=2, figure=tmp_path / "figure.png")
    hf_ssl.search(index=str(tmp_path / "features"), outliers=2, figure=tmp_path / "figure.png", dataset=dataset)
    assert (tmp_path / "figure.png").is_file()
