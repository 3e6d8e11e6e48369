"""What holds for every test."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A shell's background job ignores SIGINT, and so would every process that a test starts and then interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Traces of tests are nobody's business, and every process that a test starts has this environment.
for name in [name for name in os.environ if name.startswith("OTEL_")]:
    del os.environ[name]

# How fast examples are made says how busy the machine is, not what the code does.
settings.register_profile("promptbus", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("promptbus")
