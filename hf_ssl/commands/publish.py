"""Push a run to the Hugging Face Hub: the encoder at the repository's root, the whole method in `pretraining/`.

    hf-ssl publish runs/first --repo_id ORG/NAME --dry_run
    hf-ssl publish runs/first --repo_id ORG/NAME --license apache-2.0 --tag v1.0

All of it arrives in one commit, or nothing; the same command tries again, and pushes nothing twice. The token is that
of `hf auth login`, or `HF_TOKEN`. What somebody edited on the Hub in the model card since the last push stays.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_ssl.commands.command import Command
from hf_ssl.hub.names import check_refs, check_repo_id
from hf_ssl.hub.publish import files_to_push, publish
from hf_ssl.settings import HUB_TIMEOUT, check_least, checked


@checked
class PublishSettings:
    """What is pushed, and where to.

    Args:
        run_dir: Folder that `pretrain` wrote, such as runs/first.
        repo_id: Repository, such as org/directpred-r50; made if missing.
        license: Licence of the weights for the card, such as apache-2.0; none is assumed.
        dry_run: Show the files and the card, and push nothing; needs no network.
        private: Make the repository a private one.
        tag: Name for what is pushed, such as v1.0; a tag that exists is never moved.
        revision: Branch to push to instead of main; made if missing.
        message: Commit message.
        hub_timeout: Seconds that a push may lose to failures of the Hub and to pauses after them, all attempts
            together, before it is given up; 0: nothing is tried again.
    """

    run_dir: Path
    repo_id: str
    license: str | None = None
    dry_run: bool = False
    private: bool = False
    tag: str | None = None
    revision: str | None = None
    message: str | None = None
    hub_timeout: float = HUB_TIMEOUT

    def validate_names(self) -> None:
        """Check names and numbers before any file is read."""
        check_least(self, hub_timeout=0)
        check_repo_id(self.repo_id)
        check_refs(self.revision, self.tag)


@dataclass(frozen=True)
class PublishResult:
    """What was pushed, or would be.

    Args:
        url: Address of the repository, or of the branch.
        pushed: Whether it is there now; False after a dry run.
        files: Size in bytes of each file, by its path in the repository; only of a dry run.
        card: Text of the model card; only of a dry run.
    """

    url: str
    pushed: bool
    files: dict[str, int] | None = None
    card: str | None = None

    def __str__(self) -> str:
        if self.pushed:
            return self.url
        sizes = [f"{size / 1e6:10.3f} MB  {path}" for path, size in (self.files or {}).items()]
        last = f"Nothing was pushed. Without `--dry_run` this goes to {self.url}"
        return "\n".join([*sizes, f"\n{self.card}", last])


def run(settings: PublishSettings) -> PublishResult:
    """Publish, or show what would be published."""
    url = publish(
        settings.run_dir,
        settings.repo_id,
        private=settings.private,
        revision=settings.revision,
        tag=settings.tag,
        dry_run=settings.dry_run,
        message=settings.message,
        license=settings.license,
        hub_timeout=settings.hub_timeout,
    )
    if not settings.dry_run:
        return PublishResult(url, pushed=True)
    files = files_to_push(settings.run_dir, settings.repo_id, license=settings.license)
    sizes = {
        path: len(content) if isinstance(content, bytes) else content.stat().st_size for path, content in files.items()
    }
    readme = files["README.md"]
    card = readme.decode() if isinstance(readme, bytes) else readme.read_text(encoding="utf-8")
    return PublishResult(url, pushed=False, files=sizes, card=card)


COMMAND = Command(
    "publish",
    PublishSettings,
    run,
    __doc__ or "",
    words=("run_dir",),
    first=("repo_id", "license", "dry_run", "private", "tag", "revision", "message"),
)
