"""Parts of the small pipelines: tokenizers that know letters only, a text encoder, an autoencoder, a processor."""

import string
from pathlib import Path
from typing import Any

import diffusers
import transformers

LETTERS = string.ascii_letters + string.digits + string.punctuation + " "


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    vocabulary = [(piece, -float(index)) for index, piece in enumerate(dict.fromkeys(pieces))]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=64)


def t5_encoder() -> Any:
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, is_encoder_decoder=False
    )
    return transformers.T5EncoderModel(config).eval()


def byte_vocabulary(*special: str) -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    return {piece: index for index, piece in enumerate([*special, *sorted(ByteLevel.alphabet())])}


def qwen_tokenizer() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(vocab=byte_vocabulary(*special), merges=[], model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
    )
    return tokenizer


def gemma_tokenizer() -> Any:
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(letters))}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=64)


def llama_tokenizer() -> Any:
    letters = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(letters))}
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=[], pad_token="</s>")


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


class TextOnlyProcessor(transformers.ProcessorMixin):
    """Of MiniMax-H3's processor what a prompt without pictures needs, under its name; its own needs torchvision."""

    def __init__(self) -> None:
        pass

    def save_pretrained(self, folder: str, **_: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> "TextOnlyProcessor":
        return cls()

    def create_mm_token_type_ids(self, ids: list[list[int]]) -> list[list[int]]:
        return [[0] * len(row) for row in ids]


TextOnlyProcessor.__module__, TextOnlyProcessor.__name__ = "transformers", "Qwen3VLProcessor"
