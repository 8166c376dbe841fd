"""vidgen: text in, a video with the sound that belongs to it out."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import VidGenOutput, VidGenPipeline

__version__ = "0.1.0"
__all__ = ["VidGenOutput", "VidGenPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """The pipeline is imported when it is asked for: it takes seconds, which ``--help`` must not pay for."""
    if name in ("VidGenOutput", "VidGenPipeline"):
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if "diffusers" in sys.modules:
    # Its own DiffusionPipeline.from_pretrained then knows the class; who has not paid for diffusers need not yet.
    from . import pipeline as _  # noqa: F401
