"""vidgen: text in, a video with the sound that belongs to it out."""

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
