"""How the picture moves: dense optical flow, which needs OpenCV (the ``eval`` extra) and no weights."""

import importlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vidgen.errors import InputError

FLOW_SIDE_PX = 256
"""Flow is computed on frames whose shorter side has no more pixels than this."""


@dataclass(frozen=True)
class Motion:
    """``luma`` (T, h, w) uint8, and flows (T - 1, h, w, 2) in its pixels, x then y.

    ``forward[k]`` leads from frame k to frame k + 1, ``back[k]`` from k + 1 to k.
    """

    luma: np.ndarray
    forward: np.ndarray
    back: np.ndarray

    def speeds_px(self) -> np.ndarray:
        """(T - 1, h, w) pixels a frame."""
        return np.linalg.norm(self.forward, axis=-1)


def frame_luma(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 to (T, H, W) uint8."""
    cv2 = require("cv2")
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def optical_flow(luma: np.ndarray) -> Motion:
    """Dense flow both ways by DIS (Kroeger et al. 2016, arXiv 1603.03590) of luma (T, H, W) uint8."""
    cv2 = require("cv2")
    height, width = luma.shape[1:]
    scale = min(1.0, FLOW_SIDE_PX / min(height, width))
    # DIS needs some pixels to work with; a tiny frame is enlarged, and speeds are in sides of the frame anyway.
    scale = max(scale, 32 / min(height, width))
    size = (round(width * scale), round(height * scale))
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in luma])
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forward = [solver.calc(first, second, None) for first, second in pairwise(small)]
    back = [solver.calc(second, first, None) for first, second in pairwise(small)]
    return Motion(
        small, np.array(forward).reshape(-1, *small.shape[1:], 2), np.array(back).reshape(-1, *small.shape[1:], 2)
    )


def require(module: str) -> Any:
    """A module of the ``eval`` extra.

    Raises:
        InputError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f'{module} is missing: pip install -e ".[eval]"') from error
