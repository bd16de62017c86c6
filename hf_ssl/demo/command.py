"""Show what an encoder finds similar, on a page in the browser.

    hf-ssl demo runs/first --dataset shapes
    hf-ssl demo ORG/ENCODER --dataset ORG/IMAGES --split test --port 8000
    hf-ssl demo ORG/ENCODER --dataset shapes --space ORG/NAME

ENCODER is the folder of a run, an encoder folder, a repo on the Hub (timm or transformers) or a timm name. The page
searches a sample of the data set: upload an image, and it shows the nearest ones, the image's place on a map of the
features, and their spectrum. It listens on this machine alone unless --host says otherwise; stop it by Ctrl+C.

--space publishes the page as a Space on the Hub instead of serving it here. EVERYBODY WHO SEES THE SPACE SEES THE
IMAGES OF THE SAMPLE: unless the data set comes with the package, say by --publish_images that they may be shown.
"""

import argparse
import importlib.util
import ipaddress
import shlex
import socket
import sys
from collections.abc import Sequence

import torch

from hf_ssl.cli import errors_for_users, parse_flags, show_log
from hf_ssl.data.sources import open_source
from hf_ssl.demo.collection import collect, name_of_data
from hf_ssl.demo.space import published_reference, push_space
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.evaluation.portrait import MAX_IMAGES
from hf_ssl.hub.embedding import SHOWN_BY_DEFAULT
from hf_ssl.hub.push import check_repo_id


def main() -> None:
    """The console command `hf-ssl`."""
    with errors_for_users():
        show_log()
        demo(_parse(sys.argv[1:]), shlex.join(["hf-ssl", *sys.argv[1:]]))


def demo(options: argparse.Namespace, command: str) -> None:
    """Collect, then serve or push.

    Args:
        options: What `_parse` returns.
        command: The command line, for errors.
    """
    reference = published_reference(options.encoder) if options.space else options.encoder
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(reference, device)
    source = open_source(
        options.dataset,
        config=options.dataset_config,
        split=options.split,
        revision=options.dataset_revision,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    name = name_of_data(options.encoder)
    collection = collect(encoder, source, name, options.max_images, options.batch_size, options.num_workers)
    if options.space:
        url = push_space(collection, reference, options.dataset, options.space, private=options.private, retry=command)
        print(f"Pushed to {url}")  # noqa: T201
        return
    from hf_ssl.demo.page import build_page, serve  # takes seconds, and an extra that may be missing

    serve(build_page(collection, encoder), options.host, options.port)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hf-ssl", description="Pretrained image encoders at hand.", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo_parser = commands.add_parser(
        "demo",
        help="show what an encoder finds similar, on a page in the browser",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_flags(demo_parser)
    options = parse_flags(parser, arguments, demo_parser)
    _check(options)
    return options


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", metavar="ENCODER", help="folder, Hub repo or timm name; also raw:X and random:X")
    parser.add_argument("--dataset", required=True, help="shapes, digits, folder, parquet or tar file, Hub id")
    parser.add_argument("--dataset_config", help="config of a Hub data set")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a Hub data set")
    parser.add_argument("--split", default="train", metavar="NAME", help="split to search in (default: train)")
    parser.add_argument("--image_column", help="column of the images; found by its type otherwise")
    parser.add_argument("--label_column", help="label column, if it is not found by its type and name")
    parser.add_argument(
        "--max_images", type=int, default=MAX_IMAGES, help=f"images of the sample (default: {MAX_IMAGES})"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images in a forward pass (default: 64)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode (default: 2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if present")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone; 0.0.0.0: whoever can reach it)",
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    parser.add_argument("--space", metavar="ORG/NAME", help="publish the page as a Space, and serve nothing here")
    parser.add_argument("--private", action="store_true", help="make the Space a private one")
    parser.add_argument("--publish_images", action="store_true", help="the sample's images may be shown by the Space")


def _check(options: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("The demo page needs gradio, which is not installed: pip install 'hf_ssl[demo]'")
    for name, smallest in {"max_images": 2, "batch_size": 1, "num_workers": 0}.items():
        if getattr(options, name) < smallest:
            raise ValueError(f"`--{name}` must be at least {smallest}, got {getattr(options, name)}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device cuda` needs a CUDA device, but PyTorch sees none. Leave it out.")
    if options.space is None:
        for name in ("private", "publish_images"):
            if getattr(options, name):
                raise ValueError(f"`--{name}` is for a Space. Add `--space ORG/NAME`, or leave it out.")
        _check_address(options.host, options.port)
        return
    check_repo_id(options.space)
    if options.dataset not in SHOWN_BY_DEFAULT and not options.publish_images:
        raise ValueError(
            f"A Space shows images of `{options.dataset}` to everybody who sees it. Add `--publish_images` if they "
            "may be shown."
        )


def _check_address(host: str, port: int | None) -> None:
    """Whether the page can be served there, before minutes are spent on its features."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"`--port` must be in [1, 65535], got {port}.")
    try:
        version = ipaddress.ip_address(socket.gethostbyname(host) if ":" not in host else host).version
    except (OSError, ValueError):
        raise ValueError(f"`--host` must be an address of this machine, got `{host}`.") from None
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port or 0))
        except PermissionError:
            raise ValueError(f"`--port` {port} is for the system. Choose one above 1023, or leave it out.") from None
        except OSError as error:
            if port is None:
                raise ValueError(f"`--host` must be an address of this machine, got `{host}`.") from None
            raise ValueError(
                f"`--port` {port} of `{host}` cannot be used: {error.strerror}. Choose another, or leave it out."
            ) from None


if __name__ == "__main__":
    main()
