"""Fixtures of more than one file."""

from pathlib import Path

import pytest


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that was measured before is there."""
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Models that are folders with a configuration; returns the calls that loaded one."""
    from eval import models

    from .scoring import FakeModel

    loaded: list[Path] = []

    def load(model: Path, device: str, quality: str | None = None) -> FakeModel:
        loaded.append(model)
        return FakeModel()

    monkeypatch.setattr(models, "load_pipeline", load)
    return loaded
