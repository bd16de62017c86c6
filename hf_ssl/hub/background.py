"""Publish checkpoints while training goes on: each is a branch of the repository, pushed by one thread.

Training pays for the export alone. A slow Hub costs neither time nor disk: one snapshot is being pushed, at most one
waits, and a newer one takes its place.
"""

import logging
import os
import shutil
import sys
import threading
from pathlib import Path

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hf_ssl.hub.export import export_run
from hf_ssl.hub.publish import publish, publish_command
from hf_ssl.methods.base import SSLPreTrainedModel
from hf_ssl.settings import HUB_TIMEOUT
from hf_ssl.tokens import without_tokens
from hf_ssl.training.arguments import TrainingSettings
from hf_ssl.training.files import RUN_FILE

logger = logging.getLogger(__name__)

_THREAD = "publish checkpoints"


class BackgroundPublisher:
    """Publishes step after step to branches `step-N`, from snapshots in `run_dir/unpublished`.

    A snapshot is removed when it has arrived. One that could not be pushed is reported and stays, until that happens
    to a newer one; `resume` tries it again, also in a later process. Nothing here raises because of the Hub.

    Args:
        run_dir: Folder of the run, whose `run.json` is current.
        repo_id: Repository, made if missing.
        private: Make it a private one.
        license: Licence of the weights for the cards.
        hub_timeout: Seconds that each push may lose to failures, see `push_files`.
    """

    def __init__(
        self,
        run_dir: Path,
        repo_id: str,
        *,
        private: bool = False,
        license: str | None = None,
        hub_timeout: float = HUB_TIMEOUT,
    ):
        self.run_dir, self.repo_id, self.private, self.license = run_dir, repo_id, private, license
        self.hub_timeout = hub_timeout
        self.folder = run_dir / "unpublished"
        self.lost: list[str] = []  # branches whose push failed and whose snapshot is gone
        self._state = threading.Condition()
        self._waiting: list[Path] = []  # oldest first
        self._at_work: Path | None = None
        self._failed: Path | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, settings: TrainingSettings) -> "BackgroundPublisher | None":
        """What sends the encoder so far to a branch after each checkpoint; None if that is not wanted.

        It begins with what an earlier process of the run has left.
        """
        if not settings.push_checkpoints:
            return None
        publisher = cls(
            Path(settings.output_dir),
            settings.repo_id or "",
            private=settings.private,
            license=settings.license,
            hub_timeout=settings.hub_timeout,
        )
        if os.environ.get("RANK", "0") == "0":
            publisher.resume()
        return publisher

    def submit(self, step: int, model: SSLPreTrainedModel) -> None:
        """Write a snapshot of the run at this step, and have it pushed; returns before that has happened."""
        snapshot = self.folder / f"step-{step:06d}"
        partial = self.folder / f".{snapshot.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if (self.run_dir / RUN_FILE).is_file():
            shutil.copyfile(self.run_dir / RUN_FILE, partial / "run.json")
        export_run(model, partial)
        with self._state:
            if snapshot == self._at_work:  # left by an earlier process, and the same bit for bit
                shutil.rmtree(partial)
                return
            shutil.rmtree(snapshot, ignore_errors=True)
            partial.rename(snapshot)
            for late in self._waiting:
                if late != snapshot:
                    logger.warning(
                        "%s is not published: the Hub is slower than the checkpoints, and %s takes its place.",
                        late.name,
                        snapshot.name,
                    )
                    shutil.rmtree(late)
            self._waiting.clear()
        self._push_later(snapshot)

    def resume(self) -> None:
        """Push what an earlier process or a push that failed has left; to be called while nothing is pushed."""
        for partial in self.folder.glob(".step-*"):
            shutil.rmtree(partial)
        for snapshot in self.snapshots():
            self._push_later(snapshot)

    def snapshots(self) -> list[Path]:
        """The snapshots that have not arrived, oldest first."""
        return sorted(self.folder.glob("step-*"), key=_step_of)

    def command(self, snapshot: Path) -> str:
        """The command line that publishes a snapshot."""
        return publish_command(
            snapshot,
            self.repo_id,
            self.private,
            revision=snapshot.name,
            message=_title(snapshot),
            license=self.license,
        )

    def left(self) -> list[str]:
        """Names of the branches that are still to be pushed."""
        with self._state:
            return [path.name for path in (self._at_work, *self._waiting) if path is not None]

    def wait(self) -> None:
        """Return when every snapshot has arrived or was reported; interrupting it leaves all files as they are."""
        left = self.left()
        if left:
            logger.info(
                "Waiting until %s %s reached the Hub. Ctrl-C ends the wait; what has not arrived stays in `%s`.",
                " and ".join(left),
                "has" if len(left) == 1 else "have",
                self.folder,
            )
        with self._state:
            self._state.wait_for(lambda: self._at_work is None and not self._waiting)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()  # here, where nothing else of this process writes into it

    def _push_later(self, snapshot: Path) -> None:
        with self._state:
            self._waiting.append(snapshot)
            if self._thread is None:
                # A daemon: a run that is stopped does not wait for the Hub.
                self._thread = threading.Thread(target=self._work, name=_THREAD, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._state:
                self._at_work = self._waiting.pop(0) if self._waiting else None
                self._state.notify_all()
                if self._at_work is None:  # the thread is there as long as there is work: `leave_uploads`
                    self._thread = None
                    return
            self._push(self._at_work)

    def _push(self, snapshot: Path) -> None:
        shown = not are_progress_bars_disabled()
        if shown:  # they would tear the training's own
            disable_progress_bars()
        try:
            url = publish(
                snapshot,
                self.repo_id,
                private=self.private,
                revision=snapshot.name,
                message=_title(snapshot),
                license=self.license,
                hub_timeout=self.hub_timeout,
            )
        except Exception as error:  # whatever it is, it is no reason to lose a run
            logger.warning(
                "%s is not published; the run goes on. %s", snapshot.name, without_tokens(str(error) or repr(error))
            )
            if self._failed is not None and self._failed != snapshot:
                logger.warning("The snapshot of %s gives way to that of %s.", self._failed.name, snapshot.name)
                shutil.rmtree(self._failed, ignore_errors=True)
                self.lost.append(self._failed.name)
            self._failed = snapshot
        else:
            logger.info("Published: %s", url)
            shutil.rmtree(snapshot, ignore_errors=True)
            if self._failed == snapshot:
                self._failed = None
        finally:
            if shown:
                enable_progress_bars()


def leave_uploads(code: int | str) -> None:
    """End a process that was stopped or failed at once, if its publisher may be at work; does nothing otherwise.

    Python would wait until the uploads under way have ended, and a cluster does not give that time. What they bring
    belongs to no commit yet, so the repository stays as it is.
    """
    if any(thread.name == _THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _step_of(snapshot: Path) -> int:
    return int(snapshot.name.removeprefix("step-"))


def _title(snapshot: Path) -> str:
    return f"Step {_step_of(snapshot)}"
