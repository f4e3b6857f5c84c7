"""The frontend and the `switchyard` command. They report failures themselves: gRPC's core, which
asks for this when it is imported, adds no lines to stderr."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
