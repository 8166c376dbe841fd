"""Back ends for sound: CLAP with random weights, a script in place of Synchformer, a stand-in for ImageBind."""

import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.backends import OFFSETS_S, Clap, ImageBind, Synchformer, offset_s, sync_segments
from vidgen.errors import InputError
from vidgen.media import Clip, write_video

RATE_HZ = 16000


def sine(hz, duration_s, rate_hz=RATE_HZ):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    """A CLAP of a few thousand random parameters, saved as the real one is."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizerFast

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    vocabulary = {word: k for k, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "dog", "barks"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = RobertaTokenizerFast(tokenizer_object=words, model_max_length=20)
    text = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 16, "max_position_embeddings": 32, "projection_dim": 8}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1], "projection_dim": 8}
    audio |= {"num_attention_heads": [1, 1, 1, 1], "patch_embed_input_channels": 1}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    ClapModel(config).save_pretrained(folder)
    ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), tokenizer).save_pretrained(folder)
    return folder


def test_clap_is_the_cosine_of_the_two_embeddings(clap_folder):
    from transformers import ClapModel, ClapProcessor

    clap = Clap(clap_folder)
    sound = sine(440, 3, 48000)
    model, processor = ClapModel.from_pretrained(clap_folder).eval(), ClapProcessor.from_pretrained(clap_folder)
    with torch.no_grad():
        together = model(**processor(text=["a dog barks"], audio=[sound], sampling_rate=48000, return_tensors="pt"))
    expected = float((together.text_embeds @ together.audio_embeds.T)[0, 0])
    assert clap.score(sound, 48000, "a dog barks") == pytest.approx(expected, abs=1e-5)
    assert clap.score(sine(440, 3, 24000), 24000, "a dog barks") == pytest.approx(expected, abs=1e-2)
    # A long sound is heard in windows, the same every time: here each window holds the same.
    tiled = np.tile(sine(440, 10, 48000), 2)
    assert clap.score(tiled, 48000, "a") == pytest.approx(clap.score(tiled[: len(tiled) // 2], 48000, "a"), abs=1e-5)


def test_what_clap_cannot_use_is_refused(clap_folder, tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Clap(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((clap_folder / "config.json").read_text())
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Clap(tmp_path)  # never unpickled
    clap = Clap(clap_folder)
    with pytest.raises(InputError, match="no sound"):
        clap.score(np.zeros(0, np.float32), 48000, "a")
    with pytest.raises(InputError, match="not finite"):
        clap.score(np.full(48000, np.nan, np.float32), 48000, "a")


def test_offsets_are_read_from_21_classes():
    logits = torch.full((3, 21), -5.0)
    logits[0, 10] = logits[1, 0] = logits[2, 12] = 5.0
    np.testing.assert_allclose(offset_s(logits), [0, -2, 0.4], atol=1e-12)
    assert OFFSETS_S[11] - OFFSETS_S[10] == pytest.approx(0.2)
    with pytest.raises(InputError, match="21"):
        offset_s(torch.zeros(1, 20))
    with pytest.raises(InputError, match="not finite"):
        offset_s(torch.full((1, 21), float("nan")))


def test_segments_are_cut_alike_from_picture_and_sound():
    frames = np.zeros((125, 64, 96, 3), np.uint8)
    frames[80:, :, :, 0] = 255  # from 3.2 s on
    sound = np.zeros(5 * RATE_HZ, np.float32)
    sound[round(3.2 * RATE_HZ) :] = sine(1000, 1.8)
    pictures, mels = sync_segments(Clip(frames, sound, Fraction(25), RATE_HZ))
    assert pictures.shape == (14, 16, 3, 224, 224)
    assert mels.shape == (14, 1, 128, 66)
    # Segment k begins after 0.32 k seconds and lasts 0.64 s: the tenth is the first that holds the change all through.
    red = pictures[:, :, 0].mean((-1, -2))
    np.testing.assert_allclose(red[8], -1, atol=1e-5)
    np.testing.assert_allclose(red[9], [-1] * 8 + [1] * 8, atol=1e-5)
    np.testing.assert_allclose(red[10], 1, atol=1e-5)
    loudest = mels[:, 0, :, :64].amax(1)
    assert (loudest[8] < -0.9).all()  # silence: (log 1e-6 + 4.27) / 9.14
    assert (loudest[9, :28] < -0.9).all()
    assert (loudest[9, 36:] > 0).all()
    assert (loudest[10] > 0).all()
    # HTK's mel scale: 1000 Hz are 1000 of 2840 mel, band 44 of 128.
    assert abs(int(mels[11, 0, :, 30].argmax()) - 1000 / 2840 * 129 + 1) <= 1


def test_what_synchformer_cannot_use_is_refused(tmp_path):
    silent = np.zeros((125, 32, 32, 3), np.uint8)
    with pytest.raises(InputError, match="no sound"):
        sync_segments(Clip(silent, None, Fraction(25), RATE_HZ))
    with pytest.raises(InputError, match=r"4\.8 s"):
        sync_segments(Clip(silent[:60], np.zeros(38400, np.float32), Fraction(25), RATE_HZ))
    with pytest.raises(InputError, match="25 frames"):
        sync_segments(Clip(silent, np.zeros(80000, np.float32), Fraction(24), RATE_HZ))
    with pytest.raises(InputError, match="no such file"):
        Synchformer(tmp_path / "nowhere.pt")
    (tmp_path / "other.pt").write_bytes(b"something else")
    with pytest.raises(InputError, match="no TorchScript"):
        Synchformer(tmp_path / "other.pt")


class Lateness(torch.nn.Module):
    """Finds the first segment that is bright and the first that is loud, and tells by how many the latter is late."""

    def forward(self, vis: torch.Tensor, aud: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bright = (vis.mean((2, 3, 4, 5)) > 0.5).int().argmax(1)
        loud = (aud[..., :64].amax((2, 3, 4)) > 0.0).int().argmax(1)
        late = torch.clamp(10 + loud - bright, 0, 20)
        return torch.zeros(1), torch.nn.functional.one_hot(late, 21).float()


def test_desync_follows_a_shifted_sound(tmp_path):
    script = tmp_path / "synchformer.pt"
    torch.jit.script(Lateness()).save(script)
    sync = Synchformer(script)
    frames = np.zeros((134, 32, 32, 3), np.uint8)
    frames[60:] = 255
    found = {}
    for late_s in (0.0, 0.64):
        sound = np.zeros(round(5.36 * RATE_HZ), np.float32)
        begin = round((2.4 + late_s) * RATE_HZ)
        sound[begin:] = sine(1000, 6)[: len(sound) - begin]
        path = write_video(tmp_path / f"{late_s}.mp4", frames, sound, 25, RATE_HZ)
        found[late_s] = sync.offsets_s(path)
    # Steps of 0.32 s, told in classes of 0.2 s, of both ends; a loud segment is one that holds any sound.
    np.testing.assert_allclose(found[0.64] - found[0.0], [0.4, 0.4], atol=1e-9)
    assert sync.desync_s(tmp_path / "0.64.mp4") == pytest.approx(np.abs(found[0.64]).mean())


def test_imagebind_is_named_where_it_is_missing(tmp_path):
    with pytest.raises(InputError, match="facebookresearch/ImageBind"):
        ImageBind(tmp_path / "imagebind_huge.pth")


@pytest.fixture
def imagebind(monkeypatch):
    """The package's interface around one linear layer."""

    class Model(torch.nn.Linear):
        def forward(self, given):
            return {kind: super(Model, self).forward(data) for kind, data in given.items()}

    def sound_data(paths, device):
        import wave

        with wave.open(paths[0]) as file:
            assert file.getparams()[:3] == (1, 2, RATE_HZ)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
        return torch.tensor([[float(np.sqrt(np.mean(samples**2))), 1.0]])

    data = types.SimpleNamespace(
        load_and_transform_video_data=lambda paths, device: torch.tensor([[1.0, 0.0]]),
        load_and_transform_audio_data=sound_data,
    )
    model = types.SimpleNamespace(
        ModalityType=types.SimpleNamespace(VISION="vision", AUDIO="audio"),
        imagebind_huge=lambda pretrained: Model(2, 2, bias=False),
    )
    package, models = types.ModuleType("imagebind"), types.ModuleType("imagebind.models")
    package.data, models.imagebind_model = data, model
    monkeypatch.setitem(sys.modules, "imagebind", package)
    monkeypatch.setitem(sys.modules, "imagebind.models", models)


def test_imagebind_is_the_cosine_of_its_embeddings_from_plain_tensors(imagebind, tmp_path):
    torch.save({"weight": torch.eye(2)}, tmp_path / "weights.pth")
    bind = ImageBind(tmp_path / "weights.pth")
    clip = write_video(tmp_path / "clip.mp4", np.zeros((24, 32, 32, 3), np.uint8), sine(440, 1), 24, RATE_HZ)
    level = 0.5 / np.sqrt(2)
    assert bind.score(clip) == pytest.approx(level / np.hypot(level, 1), rel=0.02)
    silent = write_video(tmp_path / "silent.mp4", np.zeros((24, 32, 32, 3), np.uint8), None, 24)
    with pytest.raises(InputError, match="no sound"):
        bind.score(silent)
    torch.save({"other": torch.eye(2)}, tmp_path / "other.pth")
    torch.save(Path, tmp_path / "object.pth")
    for name in ("other.pth", "object.pth"):
        with pytest.raises(InputError, match="not ImageBind's state dict"):
            ImageBind(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        ImageBind(tmp_path / "nowhere.pth")
