"""Puts the model's folder on sys.path, as Triton's stub and a run as a program do."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.models import fake_backend

MODEL = Path(__file__).resolve().parents[3] / "models" / "gpt4_nano"
sys.path.insert(0, str(MODEL / "1"))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """model.py as Triton would import it, over a backend that records."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_backend)
    for name in [name for name in fake_backend.environment() if name.startswith("GPT4_NANO_")]:
        monkeypatch.delenv(name)
    yield importlib.import_module("model")
    del sys.modules["model"]


@pytest.fixture
def config_text() -> str:
    return (MODEL / "config.pbtxt").read_text()
