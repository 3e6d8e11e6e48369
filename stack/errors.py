"""What goes wrong in the stack, said for people."""


class StackError(Exception):
    """One or more sentences: what is wrong and what to do. Commands print it alone and exit 1."""


class NotInstalled(StackError):
    """Something that `make setup` installs is missing."""


class PortTaken(StackError):
    """A port that was asked for by number is in use."""


class Crashed(StackError):
    """A server ended while it was being started, by a fault of its own that the next start hardly meets."""


class StartFailed(StackError):
    """A server ended, or did not become ready, while it was being started."""
