"""python3 -m muonsocks.client: see `program`."""

import sys

from muonsocks.client.program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
