"""Measures that need other people's weights, which the user brings: CLAP, Synchformer, ImageBind (see ``backends``)."""

from functools import lru_cache, partial
from pathlib import Path

from vidgen import media
from vidgen.media import Clip

from . import backends
from .cache import code_sha256, sha256
from .measure import Measure


def optional_measures(clap: str | None, synchformer: Path | None, imagebind: Path | None) -> list[Measure]:
    """A measure for each back end that is named; each is loaded once here, so that a mistake shows at once.

    A clip without sound has none of their figures, and one without a caption none of CLAP's.

    Raises:
        InputError: weights or packages are missing or cannot be used.
    """
    measures = []
    code = code_sha256(backends, media)
    if clap is not None:
        _clap(clap)
        weights = Path(clap) / "model.safetensors"
        version = f"{code} {sha256(weights) if weights.is_file() else clap}"
        measures.append(Measure("clap", version, partial(_clap_score, model=clap), with_prompt=True))
    if synchformer is not None:
        _synchformer(synchformer)
        measures.append(Measure("synchformer", f"{code} {sha256(synchformer)}", partial(_desync, script=synchformer)))
    if imagebind is not None:
        _imagebind(imagebind)
        measures.append(Measure("imagebind", f"{code} {sha256(imagebind)}", partial(_likeness, weights=imagebind)))
    return measures


@lru_cache(maxsize=1)
def _clap(model: str) -> backends.Clap:
    return backends.Clap(model)


@lru_cache(maxsize=1)
def _synchformer(script: Path) -> backends.Synchformer:
    return backends.Synchformer(script)


@lru_cache(maxsize=1)
def _imagebind(weights: Path) -> backends.ImageBind:
    return backends.ImageBind(weights)


def _clap_score(path: Path, clip: Clip, prompt: str, model: str) -> dict[str, float | None]:
    if clip.waveform is None or not prompt:
        return {"text_sound": None}
    return {"text_sound": _clap(model).score(clip.waveform, clip.sample_rate_hz, prompt)}


def _desync(path: Path, clip: Clip, script: Path) -> dict[str, float | None]:
    return {"desync_s": None if clip.waveform is None else _synchformer(script).desync_s(path)}


def _likeness(path: Path, clip: Clip, weights: Path) -> dict[str, float | None]:
    return {"picture_sound": None if clip.waveform is None else _imagebind(weights).score(path)}
