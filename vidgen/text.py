"""Prompts to token features: a small offline table of word vectors, or any encoder of the transformers library.

Both encoders are frozen and share ``dim`` and ``encode(prompts) -> (features, mask)``. Features are never pooled:
which colour goes with which object is only visible in the sequence.
"""

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from .errors import InputError
from .loading import offloadable
from .noise import to_device

TOKENIZER_FILE = "tokenizer.json"
UNKNOWN = "[UNK]"


class WordVectorEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' own bases disagree
    """One fixed vector for each word or word piece, whatever stands around it.

    Words near in meaning have near vectors, so a synonym that never occurred in training lands beside a word that
    did; order and grammar are left to the text layers of the network that reads the tokens. Letter case, accents and
    punctuation are ignored. The folder of a saved encoder holds the table, ``config.json`` and ``tokenizer.json``.

    Args:
        vocabulary_size: rows of the table; row 0 belongs to ``[UNK]``.
        dim: length of a vector.
    """

    @register_to_config
    def __init__(self, vocabulary_size: int = 1, dim: int = 80) -> None:
        super().__init__()
        self.dim = dim
        self.vectors = nn.Parameter(torch.zeros(vocabulary_size, dim), requires_grad=False)
        self.tokenizer = make_tokenizer([UNKNOWN])

    @classmethod
    def from_table(cls, vocabulary: Sequence[str], vectors: Tensor) -> "WordVectorEncoder":
        """Encoder from words and ``##pieces`` (V) with their vectors (V, dim); the unknown word's zeros are added."""
        encoder = cls(len(vocabulary) + 1, vectors.shape[1])
        encoder.tokenizer = make_tokenizer([UNKNOWN, *vocabulary])
        encoder.vectors.data = torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])
        return encoder.eval()

    @offloadable
    @torch.no_grad()
    def encode(self, prompts: list[str], max_tokens: int = 48) -> tuple[Tensor, Tensor]:
        """Token features (B, S, dim) float32 and their mask (B, S) bool; S is that of the longest prompt.

        An empty prompt is one token of zeros with mask True, so that attention over the text is never empty; so is
        a word in a script that the vocabulary does not know. Padding is zeros with mask False.
        """
        encodings = self.tokenizer.encode_batch(prompts, add_special_tokens=False)
        if any(len(encoding) > max_tokens for encoding in encodings):
            _warn_truncated(max_tokens)
        ids, mask = _pad([encoding.ids[:max_tokens] for encoding in encodings], empty_id=0)
        ids, mask = to_device(ids, self.vectors.device), to_device(mask, self.vectors.device)
        return self.vectors[ids].float() * mask[..., None], mask

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        self.tokenizer.save(str(Path(save_directory) / TOKENIZER_FILE), pretty=False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any
    ) -> "WordVectorEncoder":
        """As in diffusers, from a local folder.

        Raises:
            InputError: ``tokenizer.json`` is missing, damaged, or of another size than the table.
        """
        encoder = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        path = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "", TOKENIZER_FILE)
        if not path.is_file():
            raise InputError(f"{path} is missing: the word vectors cannot be used without their tokenizer")
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error
        encoder.tokenizer = Tokenizer.from_str(text)
        size = encoder.tokenizer.get_vocab_size()
        if size != len(encoder.vectors):
            raise InputError(f"{path} has {size} words, the table of vectors beside it {len(encoder.vectors)}")
        return encoder.requires_grad_(False)


class TransformersEncoder(nn.Module):
    """Any text encoder of the transformers library, frozen; features are its last hidden state.

    Of an encoder-decoder (T5, UMT5) only the encoder is loaded. Weights must be safetensors; nothing is unpickled.

    Args:
        name_or_path: a folder, or a name on the Hugging Face hub.

    Raises:
        InputError: there is no such model, or it is not a text encoder.
    """

    def __init__(self, name_or_path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        # Loading transformers takes seconds, and the shipped model does without.
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

        name = str(name_or_path)
        try:
            config = AutoConfig.from_pretrained(name)
            auto = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = auto.from_pretrained(name, use_safetensors=True).to(dtype or torch.float32)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"no text encoder can be loaded from {name!r}: {reason}") from error
        text_config = config.get_text_config()
        self.dim: int = getattr(text_config, "hidden_size", None) or text_config.d_model
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "TransformersEncoder":
        """Stays in evaluation mode: dropout must not touch frozen features."""
        return super().train(False)

    @offloadable
    @torch.no_grad()
    def encode(self, prompts: list[str], max_tokens: int = 256) -> tuple[Tensor, Tensor]:
        """Token features (B, S, dim) float32 and their mask (B, S) bool, special tokens of the model included."""
        max_tokens = min(max_tokens, self.tokenizer.model_max_length)
        rows = self.tokenizer(prompts, verbose=False).input_ids
        if max(map(len, rows), default=0) > max_tokens:
            _warn_truncated(max_tokens)
            # The tokenizer's own truncation keeps the token that marks the end.
            rows = self.tokenizer(prompts, truncation=True, max_length=max_tokens).input_ids
        # Models that mark neither start nor end turn "" into no token at all.
        empty_id = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        ids, mask = _pad(rows, empty_id)
        device = next(self.model.parameters()).device
        ids, mask = to_device(ids, device), to_device(mask, device)
        features = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return features.float() * mask[..., None], mask


def load_text_encoder(
    name_or_path: str | os.PathLike, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> WordVectorEncoder | TransformersEncoder:
    """Load a frozen text encoder: a saved ``WordVectorEncoder`` folder, or any transformers model by folder or name.

    Args:
        dtype: what the weights are held in (features are float32 always); None: float32 for a transformers model.

    Raises:
        InputError: there is no such folder or model, or it holds no text encoder.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        encoder = _load_folder(folder, dtype)
    elif folder.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name_or_path)):
        raise InputError(f"text encoder {name_or_path}: there is no such folder")
    else:
        encoder = TransformersEncoder(name_or_path, dtype)
    encoder.to(torch.device(device))
    return encoder.eval()


def make_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """WordPiece (Wu et al. 2016, arXiv 1609.08144) without case, accents and punctuation; ids are list positions."""
    word_ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(word_ids, unk_token=UNKNOWN, max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    return tokenizer


def _load_folder(folder: Path, dtype: torch.dtype | None) -> WordVectorEncoder | TransformersEncoder:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"text encoder {folder}: the folder has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not ("_class_name" in config or "model_type" in config):
        raise InputError(f"{path} describes no text encoder (neither a _class_name nor a model_type)")
    name = config.get("_class_name")
    if name is None:
        return TransformersEncoder(folder, dtype)
    if name != WordVectorEncoder.__name__:
        raise InputError(f"{folder} holds a {name}, which is not a text encoder")
    try:
        return WordVectorEncoder.from_pretrained(folder, torch_dtype=dtype)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"text encoder {folder} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _warn_truncated(max_tokens: int) -> None:
    warnings.warn(f"a prompt is longer than {max_tokens} tokens: what follows them is ignored", stacklevel=3)


def _pad(rows: list[list[int]], empty_id: int) -> tuple[Tensor, Tensor]:
    """Token ids of unequal length to (B, S) ids and mask; an empty row becomes the one token ``empty_id``."""
    rows = [row or [empty_id] for row in rows]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    length = max((len(row) for row in rows), default=1)
    ids = torch.tensor([row + [empty_id] * (length - len(row)) for row in rows], dtype=torch.long)
    return ids.view(len(rows), length), torch.arange(length) < lengths[:, None]
