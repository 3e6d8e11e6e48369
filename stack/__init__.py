"""A real Apache Kafka and a real Triton on this machine, without Docker.

Only the standard library is imported here: `python3 -m stack.setup` runs before `.venv` exists.
Never packaged; tests, benchmarks, `make demo` and `make up` use it.
"""
