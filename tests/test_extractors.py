"""Features of clips: preprocessing by analytic cases, networks by their shapes and what their weights must fit."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from eval import extractors, fetch
from eval.feature_networks import I3D, LPIPS, Inception, SoundNet, same_padding
from vidgen.errors import InputError
from vidgen.media import Clip

RATE_HZ = extractors.SOUNDNET_RATE_HZ


def clip(num_frames=16, waveform=None, rate_hz=RATE_HZ, side=32):
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)
    return Clip(frames, waveform, Fraction(24), rate_hz)


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class MeanColour(torch.nn.Module):
    """Stands in for the I3D file: takes its switches, gives the mean of each channel and the shape that it saw."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale
        assert not resize
        assert return_features
        shape = torch.tensor([float(x.shape[1]), float(x.shape[2]), float(x.shape[3]), float(x.shape[4])])
        return torch.cat([x.mean((0, 2, 3, 4)), shape])


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(MeanColour()).save(path)
    return path


def test_a_torchscript_i3d_sees_sixteen_frames_from_minus_one_to_one(script):
    extractor = extractors.i3d(script)
    frames = np.zeros((20, 40, 30, 3), np.uint8)
    frames[:16, ..., 0], frames[:16, ..., 1] = 255, 51
    frames[16:] = 77  # not looked at
    features = extractor.features(Clip(frames, None, Fraction(24), RATE_HZ))
    assert features.shape == (7,)
    np.testing.assert_allclose(features, [1, -0.6, -1, 3, 16, 224, 224], atol=1e-5)
    assert "sha256:" in extractor.name
    assert extractors.i3d(script).name == extractor.name


def test_short_clips_and_unusable_files_are_refused(script, tmp_path):
    with pytest.raises(InputError, match="need 16 frames"):
        extractors.i3d(script).features(clip(num_frames=15))
    with pytest.raises(InputError, match="no such file"):
        extractors.i3d(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="no TorchScript"):
        extractors.i3d(tmp_path / "text.pt")


def test_missing_weights_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path))
    for name, make in (("i3d", extractors.i3d), ("inception", extractors.inception), ("soundnet", extractors.soundnet)):
        with pytest.raises(InputError, match=rf"python -m eval\.fetch {name}"):
            make()


def test_tensorflows_resize_samples_from_the_corner():
    row = torch.arange(8.0).expand(1, 1, 8, 8)
    np.testing.assert_allclose(extractors.tensorflow_resize(row, 16)[0, 0, 0], np.minimum(np.arange(16) / 2, 7))
    np.testing.assert_allclose(extractors.tensorflow_resize(row, 4)[0, 0, 0], [0, 2, 4, 6])
    tall = row.mT[..., :5]  # another height than width
    np.testing.assert_allclose(extractors.tensorflow_resize(tall, 4)[0, 0, :, 1], [0, 2, 4, 6])


def test_same_padding_is_tensorflows():
    # 16 by a kernel of 7 with stride 2: 8 outputs, 2 zeros before and 3 behind.
    assert same_padding(torch.ones(1, 16), (7,), (2,))[0].tolist() == [0, 0, *[1] * 16, 0, 0, 0]
    for length in range(9, 14):
        for kernel, stride in ((3, 1), (3, 2), (2, 2), (7, 2)):
            padded = same_padding(torch.zeros(1, 1, length), (kernel,), (stride,))
            assert F.max_pool1d(padded, kernel, stride).shape[-1] == -(-length // stride)


def test_networks_give_features_of_the_known_sizes():
    with torch.device("meta"):  # shapes alone, no arithmetic
        assert I3D().eval()(torch.zeros(2, 3, 9, 224, 224)).shape == (2, 400)
        assert Inception().eval()(torch.zeros(2, 3, 299, 299)).shape == (2, 2048)
        assert SoundNet().eval()(torch.zeros(2, RATE_HZ * 10)).shape[:2] == (2, 1024)


@torch.no_grad()
def test_lpips_is_a_distance_that_grows_with_its_heads():
    torch.manual_seed(0)
    network = LPIPS().eval()
    for head in network.heads:
        head.weight.fill_(1)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    noisy = (images + 0.3 * torch.randn_like(images)).clamp(-1, 1)
    assert network(images, images).tolist() == [0, 0]
    assert (network(images, noisy) > 0).all()
    torch.testing.assert_close(network(images, noisy), network(noisy, images))
    # Features have unit length at each place: without heads a layer differs by at most 4, and there are 5.
    assert network(images, -images).max() < 20


def _stand_in(monkeypatch, tmp_path, name, network):
    from safetensors.torch import save_file

    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    save_file(network.state_dict(), tmp_path / "weights" / f"{name}.safetensors")


def test_sound_features_do_not_depend_on_channels_and_refuse_other_clips(monkeypatch, tmp_path):
    torch.manual_seed(0)
    _stand_in(monkeypatch, tmp_path, "soundnet", SoundNet())
    extractor = extractors.soundnet()
    sound = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    mono = extractor.features(clip(waveform=sound))
    assert mono.shape == (1024,)
    np.testing.assert_array_equal(extractor.features(clip(waveform=np.stack([sound, sound]))), mono)
    np.testing.assert_allclose(extractor.features(clip(waveform=np.tile(sound, 20))), mono, atol=1e-6)
    with pytest.raises(InputError, match="one has none"):
        extractor.features(clip())
    with pytest.raises(InputError, match="22050"):
        extractor.features(clip(waveform=sound, rate_hz=24000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network"), [("i3d", I3D), ("inception", Inception), ("soundnet", SoundNet), ("lpips", LPIPS)]
)
def test_fetched_weights_fit_the_networks(name, network, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path))
    weights = load_file(fetch.fetch(name, fetch.SOURCES[name]))
    missing, unexpected = network().load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
