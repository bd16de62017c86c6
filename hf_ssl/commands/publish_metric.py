"""Push a measure of this package to the Hugging Face Hub as a Space, from which `evaluate.load` reads it.

    hf-ssl publish_metric knn_accuracy --repo_id ORG/knn_accuracy --dry_run
    hf-ssl publish_metric knn_accuracy --repo_id ORG/knn_accuracy
    python -c 'import evaluate; evaluate.load("ORG/knn_accuracy")'

The Space holds the module, its card, a page that shows the card, and requirements.txt. Everyone who loads it needs
hf_ssl.
"""

from dataclasses import dataclass

from hf_ssl.commands.command import Command
from hf_ssl.hub.names import check_repo_id, url_of
from hf_ssl.hub.push import push_files
from hf_ssl.invocation import command_line
from hf_ssl.metrics import path_of
from hf_ssl.metrics.space import space_files
from hf_ssl.settings import HUB_TIMEOUT, check_least, checked


@checked
class PublishMetricSettings:
    """Which measure is pushed, and where to.

    Args:
        metric: One of alignment, clustering_scores, knn_accuracy, linear_probe_accuracy, rank_me, uniformity.
        repo_id: Space, such as ORG/knn_accuracy; made if missing. Its name must be that of the measure.
        private: Make the Space a private one.
        dry_run: Show the files, and push nothing; needs no network.
        hub_timeout: Seconds that a push may lose to failures of the Hub and to pauses after them, all attempts
            together, before it is given up; 0: nothing is tried again.
    """

    metric: str
    repo_id: str
    private: bool = False
    dry_run: bool = False
    hub_timeout: float = HUB_TIMEOUT

    def validate_names(self) -> None:
        """Check that the measure exists and a repository can have the name."""
        check_least(self, hub_timeout=0)
        path_of(self.metric)
        check_repo_id(self.repo_id)


@dataclass(frozen=True)
class PublishMetricResult:
    """The Space that was pushed, or would be.

    Args:
        url: Its address.
        pushed: Whether it is there now; False after a dry run.
        files: Text of each file by its path in the Space.
    """

    url: str
    pushed: bool
    files: dict[str, str]

    def __str__(self) -> str:
        if self.pushed:
            return self.url
        parts = [f"--- {path}\n{text}" for path, text in self.files.items()]
        return "\n".join([*parts, f"Nothing was pushed. Without `--dry_run` this goes to {self.url}"])


def run(settings: PublishMetricSettings) -> PublishMetricResult:
    """Push, or show what would be pushed."""
    files = space_files(path_of(settings.metric) / f"{settings.metric}.py", settings.repo_id)
    texts = {path: content.decode() for path, content in files.items()}
    if settings.dry_run:
        return PublishMetricResult(url_of(settings.repo_id, "space"), pushed=False, files=texts)
    url = push_files(
        files,
        settings.repo_id,
        repo_type="space",
        space_sdk="gradio",
        private=settings.private,
        message=f"Metric {settings.metric} of hf_ssl",
        hub_timeout=settings.hub_timeout,
        retry=command_line(),
    )
    return PublishMetricResult(url, pushed=True, files=texts)


COMMAND = Command(
    "publish_metric",
    PublishMetricSettings,
    run,
    __doc__ or "",
    words=("metric",),
    first=("repo_id", "private", "dry_run"),
)
