"""Captions by a vision-language model: a tiny random one, saved to a folder as any other."""

import json
from fractions import Fraction

import numpy as np
import pytest

from vidgen.data.captioner import REQUESTS, Captioner, heard
from vidgen.data.conform import Made
from vidgen.errors import InputError
from vidgen.media import write_video

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("captioner")
    words = sorted({word for request in REQUESTS.values() for word in request.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", "<image>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(vocabulary), "eos_token_id": 1, "pad_token_id": 0}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=16, patch_size=8),
        text_config=LlamaConfig(**sizes, **tokens, num_key_value_heads=2),
        image_token_index=3, vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_clip_gets_a_long_a_short_and_a_sound_caption_by_any_model_of_a_folder(model, tmp_path):
    captioner = Captioner(str(model), device="cpu", max_new_tokens=6)
    asked = []
    template = captioner.processor.apply_chat_template

    def listen(messages, **options):
        asked.append([part.get("text", part["type"]) for part in messages[0]["content"]])
        return template(messages, **options)

    captioner.processor.apply_chat_template = listen
    frames = np.random.default_rng(0).integers(0, 255, (12, 32, 48, 3), np.uint8)
    click = np.zeros(12000, np.float32)
    click[7200:] = np.random.default_rng(1).uniform(-0.5, 0.5, 4800)
    clip = write_video(tmp_path / "clip.mp4", frames, click, Fraction(24)).read_bytes()
    captions = captioner.describe(Made(clip, ".mp4", {"kind": "video"}))
    assert len(captions) == len(asked) == 3
    assert all(0 < len(caption.split()) <= 6 for caption in captions)
    assert [len(request) for request in asked] == [5, 5, 5]  # four frames and words
    assert "something begins to sound at 0.3 seconds" in asked[2][-1]

    silent = write_video(tmp_path / "silent.mp4", frames, None, Fraction(24)).read_bytes()
    assert len(captioner.describe(Made(silent, ".mp4", {"kind": "video"}))) == 2
    assert captioner.describe(Made(b"", ".flac", {"kind": "sound"})) == []


def test_what_is_heard_is_told_from_the_samples():
    steady = 0.3 * np.sin(np.arange(24000) / 5).astype(np.float32)
    assert heard(steady, 24000) == "The sound of the clip is loud; it has no sudden beginnings."
    assert "quiet" in heard(steady / 100, 24000)


def test_a_folder_without_such_a_model_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded as a vision-language model"):
        Captioner(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="cannot be loaded as a vision-language model"):
        Captioner(str(tmp_path))
