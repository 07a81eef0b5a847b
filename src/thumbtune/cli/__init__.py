"""The command line: one thin file per command group. Parse, call, print.

Exit codes: 0 done · 1 a check found something · 2 a wrong option, file or setting · 130 interrupted, work saved.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `thumbtune`: prints our own errors in one line, without a traceback."""
    from thumbtune.cli.app import app
    from thumbtune.errors import ThumbtuneError

    try:
        app(standalone_mode=True)
    except ThumbtuneError as error:
        print(f"thumbtune: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
