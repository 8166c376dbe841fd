"""ComfyUI loads this folder from its custom_nodes as a node pack; the nodes are in the installed package."""

from vidgen.comfy import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
