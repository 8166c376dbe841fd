"""vidgen: text in, a video with the sound that belongs to it out."""

__version__ = "0.1.0"
