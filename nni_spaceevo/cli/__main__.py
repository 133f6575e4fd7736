"""`python -m nni_spaceevo.cli` does what the console script `spaceevo` does."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
