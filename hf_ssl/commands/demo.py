"""Show what an encoder finds similar, on a page in the browser.

    hf-ssl demo runs/first --dataset shapes
    hf-ssl demo ORG/ENCODER --dataset shapes --space ORG/NAME

The page searches a sample of the data set: upload an image, and it shows the nearest ones, the image's place on a map
of the features, and their spectrum. Only this machine can open it, unless `--host` gives another address; stop it by
Ctrl+C.

`--space` publishes the page as a Space on the Hub instead of serving it here. EVERYONE WHO SEES THE SPACE SEES THE
IMAGES OF THE SAMPLE. Unless the data set comes with the package, say by `--publish_images` that they may be shown.
"""

import importlib.util
import ipaddress
import socket
from dataclasses import dataclass

from hf_ssl.commands.command import Command
from hf_ssl.commands.encoder_settings import ReadingSettings
from hf_ssl.data.settings import OF_DATA
from hf_ssl.demo.collection import collect, name_of_encoder
from hf_ssl.demo.space import published_reference, push_space
from hf_ssl.errors import UserError
from hf_ssl.evaluation.encoders import load_encoder
from hf_ssl.evaluation.portrait import MAX_IMAGES
from hf_ssl.hub.embedding import SHOWN_BY_DEFAULT
from hf_ssl.hub.names import check_repo_id
from hf_ssl.invocation import command_line
from hf_ssl.settings import HUB_TIMEOUT, check_least, checked


@checked
class DemoSettings(ReadingSettings):
    """What the page shows, and where it is.

    Args:
        encoder: Folder of a run, encoder folder, repository on the Hub (timm or transformers) or timm name;
            `random:NAME` is the same network untrained, `raw:NAME` the pixels that it sees.
        split: Split to search in.
        max_images: Images of the sample, at least 2.
        host: Address to listen on; 127.0.0.1 is only this machine, 0.0.0.0 every machine that can reach it.
        port: Port to listen on; the first free one from 7860 if not given.
        space: Space `org/name` to publish the page as; nothing is served here then.
        private: Make the Space a private one.
        publish_images: The Space may show the images of the sample.
        hub_timeout: Seconds that a push may lose to failures of the Hub and to pauses after them, all attempts
            together, before it is given up; 0: nothing is tried again.
    """

    encoder: str
    batch_size: int = 64
    split: str = "train"
    max_images: int = MAX_IMAGES
    host: str = "127.0.0.1"
    port: int | None = None
    space: str | None = None
    private: bool = False
    publish_images: bool = False
    hub_timeout: float = HUB_TIMEOUT

    def validate_page(self) -> None:
        """Check what can be checked before minutes are spent on features."""
        if importlib.util.find_spec("gradio") is None:
            raise UserError("The demo page needs gradio, which is not installed: pip install 'hf_ssl[demo]'")
        self.check_reading()
        check_least(self, max_images=2, hub_timeout=0)
        if self.space is None:
            for name in ("private", "publish_images"):
                if getattr(self, name):
                    raise UserError(f"`{name}` is for a Space. Add `--space ORG/NAME`, or leave it out.")
            _check_address(self.host, self.port)
            return
        check_repo_id(self.space)
        if self.dataset not in SHOWN_BY_DEFAULT and not self.publish_images:
            raise UserError(
                f"A Space shows images of `{self.dataset}` to everyone who sees it. Add `--publish_images` if they "
                "may be shown."
            )


@dataclass(frozen=True)
class DemoResult:
    """Where the page is, or was.

    Args:
        url: Address of the Space; None for a page that was served here.
    """

    url: str | None

    def __str__(self) -> str:
        return f"Pushed to {self.url}" if self.url else ""


def run(settings: DemoSettings) -> DemoResult:
    """Collect, then serve until interrupted, or push."""
    reference = published_reference(settings.encoder) if settings.space else settings.encoder
    encoder = load_encoder(reference, settings.torch_device(), settings.seed)
    source = settings.open(settings.split)
    name = name_of_encoder(settings.encoder)
    collection = collect(encoder, source, name, settings.max_images, settings.batch_size, settings.num_workers)
    if settings.space:
        retry = command_line()
        url = push_space(
            collection,
            reference,
            source.name if source.kind == "hub" else None,
            settings.space,
            private=settings.private,
            hub_timeout=settings.hub_timeout,
            retry=retry,
        )
        return DemoResult(url)
    from hf_ssl.demo.page import build_page, serve  # takes seconds, and an extra that may be missing

    serve(build_page(collection, encoder), settings.host, settings.port)
    return DemoResult(None)


def _check_address(host: str, port: int | None) -> None:
    """Whether the page can be served there."""
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"`port` must be in [1, 65535], got {port}.")
    try:
        version = ipaddress.ip_address(socket.gethostbyname(host) if ":" not in host else host).version
    except (OSError, ValueError):
        raise UserError(f"`host` must be an address of this machine, got `{host}`.") from None
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port or 0))
        except PermissionError:
            raise UserError(f"`port` {port} is for the system. Choose one above 1023, or leave it out.") from None
        except OSError as error:
            if port is None:
                raise UserError(f"`host` must be an address of this machine, got `{host}`.") from None
            raise UserError(
                f"`port` {port} of `{host}` cannot be used: {error.strerror}. Choose another, or leave it out."
            ) from None


COMMAND = Command(
    "demo",
    DemoSettings,
    run,
    __doc__ or "",
    words=("encoder",),
    function="open_demo",
    first=("dataset", "split", "max_images", "host", "port", "space", "publish_images", "private"),
    groups={
        "data": OF_DATA,
        "computation": ("batch_size", "num_workers", "device", "seed"),
    },
)
