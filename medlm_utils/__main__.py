"""Run the command line as `python -m medlm_utils`."""

import sys

from medlm_utils.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
