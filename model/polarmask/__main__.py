"""`python -m polarmask` is the `polarmask` command."""

import sys

from polarmask.cli import main

if __name__ == "__main__":
    sys.exit(main())
