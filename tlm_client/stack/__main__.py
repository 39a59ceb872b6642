"""The supervisor process of a stack in the background: `python -m tlm_client.stack PIPE OPTIONS`."""

import sys

from tlm_client.stack.control import serve

if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1]), sys.argv[2]))
