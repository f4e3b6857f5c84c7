"""`python -m frontend.cli`: the `switchyard` command."""

import sys

from frontend.cli.main import main

sys.exit(main())
