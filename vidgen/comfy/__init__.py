"""Nodes for ComfyUI: a model of this repository in a graph, with native IMAGE, AUDIO, MASK and VIDEO.

``comfyui/`` in the repository is the folder that goes into ComfyUI's ``custom_nodes``; it only names
``comfy_entrypoint``. Importing this package needs neither ComfyUI nor torch; ``nodes`` needs both.
"""

from typing import Any

__all__ = ["comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls to get the nodes (its V3 schema)."""
    from .nodes import VidGenExtension

    return VidGenExtension()
