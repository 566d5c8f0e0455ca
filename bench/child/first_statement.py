"""Child process of a job that only records when it started; it reads the clock before its imports."""

import time

BEGAN_NS = time.time_ns()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402


def main() -> None:
    """Record the start time, and success as the outcome."""
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    directory = Path(given["--data-root"]) / "jobs" / given["--job-id"]
    (directory / "began_ns").write_text(str(BEGAN_NS))
    outcome = {"schema_version": 1, "attempt": int(given["--attempt"]), "outcome": "succeeded", "error": None}
    (directory / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
