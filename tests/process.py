"""The state of a process that a test watches."""

import psutil


def is_over(process: psutil.Process) -> bool:
    """Whether a process has ended, buried by its parent or not."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended between the two questions
        return True
