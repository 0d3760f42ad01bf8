"""``python -m captum_embed``: the same as ``captum-embed``."""

import sys

from captum_embed.command_line.main import main

if __name__ == "__main__":
    sys.exit(main())
