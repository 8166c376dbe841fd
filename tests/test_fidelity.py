"""SSIM, LPIPS and STFT distance against independent computations and cases with a known answer."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from eval import fidelity
from eval.feature_networks import LPIPS
from vidgen.errors import InputError


def pictures(num_frames=3, side=48, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8))


def test_ssim_equals_a_computation_by_scipy():
    first = pictures()
    second = (first.float() * 0.7 + pictures(seed=1).float() * 0.3).byte()
    values = []
    for one, other in zip(first.numpy(), second.numpy(), strict=True):
        x, y = (image.astype(float) @ [0.299, 0.587, 0.114] for image in (one, other))

        def smooth(image):
            return gaussian_filter(image, 1.5, truncate=3.4)[5:-5, 5:-5]

        mean_x, mean_y = smooth(x), smooth(y)
        c1, c2 = 6.5025, 58.5225
        top = (2 * mean_x * mean_y + c1) * (2 * (smooth(x * y) - mean_x * mean_y) + c2)
        spread = smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2 + c2
        values.append((top / ((mean_x**2 + mean_y**2 + c1) * spread)).mean())
    assert fidelity.ssim(first, second) == pytest.approx(np.mean(values), abs=1e-9)
    assert 0.3 < np.mean(values) < 0.99


def test_ssim_of_equal_frames_is_one_and_of_flat_ones_follows_from_the_means():
    assert fidelity.ssim(pictures(), pictures()) == pytest.approx(1)
    dark, light = (torch.full((1, 16, 16, 3), level, dtype=torch.uint8) for level in (50, 100))
    assert fidelity.ssim(dark, light) == pytest.approx((2 * 50 * 100 + 6.5025) / (50**2 + 100**2 + 6.5025))
    with pytest.raises(InputError, match="11 pixels"):
        fidelity.ssim(pictures(side=8), pictures(side=8))


def test_lpips_is_the_mean_over_frames():
    torch.manual_seed(0)
    network = LPIPS().eval()
    frames, targets = pictures(10), pictures(10, seed=1)
    each = [fidelity.lpips(network, frames[k : k + 1], targets[k : k + 1]) for k in range(10)]
    assert fidelity.lpips(network, frames, targets) == pytest.approx(np.mean(each), abs=1e-5)
    assert fidelity.lpips(network, frames, frames) == 0


def test_without_fetched_weights_there_is_no_lpips(monkeypatch, tmp_path):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path))
    fidelity.lpips_network.cache_clear()
    assert fidelity.lpips_network() is None
    fidelity.lpips_network.cache_clear()


def test_stft_distance_of_a_scaled_sound():
    sound = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 1, 8000)).astype(np.float32))
    # Half the amplitude: convergence 1/2 and log 2 in every bin, at every resolution.
    assert fidelity.stft_distance(sound / 2, sound) == pytest.approx(0.5 + np.log(2), rel=1e-4)
    assert fidelity.stft_distance(sound, sound) == 0
    assert fidelity.stft_distance(sound, torch.zeros_like(sound)) is None
    with pytest.raises(InputError, match="1024"):
        fidelity.stft_distance(sound[..., :500], sound[..., :500])
