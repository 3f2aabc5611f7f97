"""Run `python -m mobilebert`."""

import sys

from mobilebert.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
