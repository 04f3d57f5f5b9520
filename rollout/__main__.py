"""The `rollout` command, also as `python -m rollout`."""

from __future__ import annotations

import signal


def main() -> None:
    """Runs the command line. Until all of it is imported, Ctrl-C ends the process as it ends any command, by the signal
    itself: Python would show where it was importing."""
    ours = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from rollout.cli import main as run

    signal.signal(signal.SIGINT, ours)
    run(prog_name="rollout")


if __name__ == "__main__":
    main()
