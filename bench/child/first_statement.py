"""A job's process that does nothing but say when it began: its clock is read before any import that costs."""

import time

BEGAN_NS = time.time_ns()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402


def main() -> None:
    """Say when this process began to run, and that its work is done."""
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    directory = Path(given["--data-root"]) / "jobs" / given["--job-id"]
    (directory / "began_ns").write_text(str(BEGAN_NS))
    outcome = {"schema_version": 1, "attempt": int(given["--attempt"]), "outcome": "succeeded", "error": None}
    (directory / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
