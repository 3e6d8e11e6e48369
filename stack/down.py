"""`make down`: end what `make up` started, and nothing else. Doing it twice does no harm."""

import sys

from stack import state
from stack.errors import StackError


def main() -> int:
    try:
        with state.locked():
            servers = state.read()
            # The worker first, so that it can hand in what it has begun.
            for server in reversed(servers):
                ran = server.alive
                state.end(server)
                print(f"{server.name} {'stopped' if ran else 'had ended before'}.", flush=True)
            state.STATE.unlink(missing_ok=True)
            state.ENV.unlink(missing_ok=True)
            if not servers:
                print("Nothing is up.")
    except StackError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; `make down` again ends the rest.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
