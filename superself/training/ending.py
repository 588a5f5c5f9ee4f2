"""How a run ends: stored if it is complete or can be taken back to a complete step, with the first error as the one shown."""

from __future__ import annotations

import warnings
from typing import Any

from superself.training.trackers.tracker import end_all


def store_end(run: Any, error: BaseException | None) -> BaseException | None:
    """Stores what is not stored yet.

    Args:
        run: whose loop has ended.
        error: that ended it, or None.
    Returns:
        What went wrong here, or None.
    """
    try:
        if error is None:
            _save_last(run)
        elif run.parallel.several:
            pass  # storing takes all processes, and the others may not have failed
        elif not run.signals.twice and not isinstance(error, FloatingPointError):
            _save_last_complete_step(run)
    except BaseException as problem:
        return problem
    return None


def end_trackers(run: Any, error: BaseException | None, failure: BaseException | None) -> None:
    """Tells every tracker how the run ended; what fails here is raised only if nothing failed before."""
    interrupted = run.signals.received is not None or isinstance(error, (KeyboardInterrupt, SystemExit))
    failed = error is not None or failure is not None
    state = "interrupted" if interrupted else "stopped by an error" if failed else "finished"
    end_all(run.trackers, state, run_failed=failed)


def _save_last(run: Any) -> None:
    """Stores the end of the run if that is missing: after a full disk at the last epoch, or with a user's own loop."""
    if run.saved_step != run.step:
        try:
            run.save()
        except OSError as error:
            raise type(error)(
                f"The end of the run could not be stored: {run.kept()}, and step {run.step} is only in memory; this "
                f"supervisor still has its weights (get_backbone()). {error}"
            ) from error
    if run.step == run.began_at < run.total_steps:
        run.warn("The loop did not call run.end_step(), so the stored run counts no steps and resuming repeats them.")


def _save_last_complete_step(run: Any) -> None:
    """After an error: stores the step before, if the run can be taken back to it."""
    step, _, epoch_began = run.boundary.counts
    if step in (run.saved_step, run.began_at, epoch_began) or not run.boundary.restore():
        return
    try:
        run.save()
    except Exception as problem:  # must not hide the error that ended the run
        warnings.warn(f"step {run.step} could not be saved ({problem}): {run.kept()}.", stacklevel=6)
    else:
        run.print(f"Stopped by an error after step {run.step}, saved to {run.name}.pt; resume=True continues.")
