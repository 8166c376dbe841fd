"""Lets diffusers find the pipeline's class: custom_pipeline=THIS FOLDER, trust_remote_code=True."""

from vidgen.pipeline import VidGenPipeline  # noqa: F401
