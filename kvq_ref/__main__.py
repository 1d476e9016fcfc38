"""``python -m kvq_ref`` is ``kvq-ref``."""

import sys

from kvq_ref.cli import main

if __name__ == "__main__":
    sys.exit(main())
