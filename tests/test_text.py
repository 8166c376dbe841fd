import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from vidgen.errors import InputError
from vidgen.text import TransformersEncoder, WordVectorEncoder, load_text_encoder
from vidgen.text_vectors import EXTRA_WORDS, SYNONYMS, embed_vocabulary, reduce, retrofit

SHIPPED = Path(__file__).parents[1] / "weights" / "text_encoder"
WORDS = ["red", "blue", "ball", "play", "a", "##ing", "##b", "##a"]


@pytest.fixture
def small() -> WordVectorEncoder:
    return WordVectorEncoder.from_table(WORDS, torch.randn(len(WORDS), 6, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def shipped() -> WordVectorEncoder:
    encoder = load_text_encoder(SHIPPED)
    assert isinstance(encoder, WordVectorEncoder)
    return encoder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "ball"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_case_accents_and_punctuation_are_ignored(small: WordVectorEncoder) -> None:
    plain, _ = small.encode(["a red ball"])
    for same in ("A Red BALL.", " a  red,ball!", "a red-ball", "á «réd» ball…", "a\tred\nball"):
        assert torch.equal(small.encode([same])[0], plain)
    assert not torch.equal(small.encode(["red a ball"])[0], plain)


def test_the_empty_prompt_is_one_neutral_token(small: WordVectorEncoder) -> None:
    for prompt in ("", "  ", "?!"):
        features, mask = small.encode([prompt])
        assert features.shape == (1, 1, 6)
        assert mask.tolist() == [[True]]
        assert not features.any()
    features, mask = small.encode([])
    assert features.shape == (0, 1, 6)
    assert mask.shape == (0, 1)
    assert mask.dtype == torch.bool


def test_batch_mates_change_nothing(small: WordVectorEncoder) -> None:
    prompts = ["red ball", "", "a blue ball playing a red ball"]
    features, mask = small.encode(prompts)
    assert features.shape == (3, 8, 6)
    assert features.dtype == torch.float32
    assert mask.sum(1).tolist() == [2, 1, 8]
    for row, prompt in enumerate(prompts):
        alone, _ = small.encode([prompt])
        assert torch.equal(features[row][mask[row]], alone[0])
        assert not features[row][~mask[row]].any()


def test_unknown_words_are_split_into_pieces(small: WordVectorEncoder) -> None:
    features, mask = small.encode(["playing"])
    assert torch.equal(features[0], small.vectors[[WORDS.index("play") + 1, WORDS.index("##ing") + 1]])
    assert small.encode(["abba"])[1].sum() == 4
    features, mask = small.encode(["红"])
    assert mask.all()
    assert not features.any()


def test_long_prompts_are_cut_with_a_warning(small: WordVectorEncoder) -> None:
    with pytest.warns(UserWarning, match="longer than 3 tokens"):
        features, mask = small.encode(["red ball a blue ball", "red"], max_tokens=3)
    assert torch.equal(features[0], small.encode(["red ball a"])[0][0])
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_save_and_load_round_trip(small: WordVectorEncoder, tmp_path: Path) -> None:
    small.half().save_pretrained(tmp_path / "text")
    for loaded in (
        WordVectorEncoder.from_pretrained(tmp_path / "text"),
        WordVectorEncoder.from_pretrained(tmp_path, subfolder="text"),
        load_text_encoder(tmp_path / "text"),
    ):
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        for expected, got in zip(small.encode(["Red playing", ""]), loaded.encode(["Red playing", ""]), strict=True):
            assert torch.equal(expected, got)
    assert load_text_encoder(tmp_path / "text", dtype=torch.float16).vectors.dtype == torch.float16


def test_damaged_folders_are_input_errors(small: WordVectorEncoder, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    tokenizer = tmp_path / "tokenizer.json"
    whole = tokenizer.read_text()
    tokenizer.write_text(whole[:50])
    with pytest.raises(InputError, match="damaged"):
        load_text_encoder(tmp_path)
    WordVectorEncoder.from_table(WORDS[:4], torch.zeros(4, 6)).tokenizer.save(str(tokenizer))
    with pytest.raises(InputError, match="has 5 words"):
        load_text_encoder(tmp_path)
    tokenizer.unlink()
    with pytest.raises(InputError, match="missing"):
        load_text_encoder(tmp_path)
    tokenizer.write_text(whole)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_text_encoder(tmp_path)


def test_what_is_no_text_encoder_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", "./nowhere/at/all", ""):
        with pytest.raises(InputError, match=r"no such folder|no config\.json"):
            load_text_encoder(path)
    config = tmp_path / "config.json"
    for text in ("{", "[]", "{}", json.dumps({"_class_name": "SpacetimeVAE"}), json.dumps({"model_type": "nonesuch"})):
        config.write_text(text)
        with pytest.raises(InputError, match=r"config\.json|SpacetimeVAE|no text encoder"):
            load_text_encoder(tmp_path)


def test_a_transformers_encoder_gives_its_token_features(bert_folder: Path) -> None:
    encoder = load_text_encoder(bert_folder)
    assert isinstance(encoder, TransformersEncoder)
    assert encoder.dim == 16
    assert not encoder.train().model.training
    features, mask = encoder.encode(["red ball", "", "Blue ball red ball"])
    assert features.shape == (3, 6, 16)
    assert mask.sum(1).tolist() == [4, 2, 6]  # with [CLS] and [SEP]
    assert not features[~mask].any()
    alone, _ = encoder.encode(["red ball"])
    torch.testing.assert_close(features[0, :4], alone[0])
    expected = encoder.model(torch.tensor([[2, 5, 7, 3]])).last_hidden_state
    torch.testing.assert_close(alone, expected)
    with pytest.warns(UserWarning, match="longer than 4 tokens"):
        features, mask = encoder.encode(["red ball red ball"], max_tokens=4)
    torch.testing.assert_close(features, alone)


def test_vocabulary_is_embedded_word_by_word(bert_folder: Path) -> None:
    words, embeddings = embed_vocabulary(bert_folder, batch_size=2)
    assert words[:3] == ["red", "blue", "ball"]
    assert set(words[3:]) == set(EXTRA_WORDS.split())
    with torch.no_grad():
        hidden = TransformersEncoder(bert_folder).model(torch.tensor([[2, 7, 3]])).last_hidden_state
    torch.testing.assert_close(embeddings[2], functional.normalize(hidden[0].mean(0), dim=0))
    with pytest.raises(InputError, match="no encoder"):
        embed_vocabulary(bert_folder / "nowhere")


def test_importing_loads_no_transformers_model() -> None:
    code = "import sys, vidgen.text; print([m for m in sys.modules if m.startswith('transformers.models')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_reduction_keeps_the_leading_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([9.0, 4.0, 1.0, 0.01])
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    points = torch.randn(4000, 4, generator=generator) * scales
    vectors = reduce(points @ rotation + 5, 3)
    assert vectors.square().mean().item() == pytest.approx(1, abs=1e-4)
    spread = vectors.std(0)
    torch.testing.assert_close(spread / spread[2], (scales[:3] / scales[2]).sqrt(), rtol=0.05, atol=0)
    correlation = functional.cosine_similarity(vectors, points[:, :3], dim=0).abs()
    assert (correlation > 0.99).all()


def test_retrofitting_moves_synonyms_half_way_and_nothing_else() -> None:
    vectors = torch.eye(4)
    moved = retrofit(["red", "crimson", "ball", "##red"], vectors, {"red": "crimson scarlet", "white": "ball"})
    assert moved.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def nearness(encoder: WordVectorEncoder, first: str, second: str) -> float:
    (one, other), mask = encoder.encode([first, second])
    assert mask.shape == (2, 1), "both must be whole words of the table"
    return functional.cosine_similarity(one[0], other[0], dim=0).item()


@pytest.mark.parametrize(
    ("word", "near", "far"),
    [
        ("crimson", "red", "blue"),
        ("azure", "blue", "red"),
        ("emerald", "green", "purple"),
        ("sphere", "ball", "cube"),
        ("steel", "metal", "rubber"),
        ("tossed", "thrown", "rolls"),
        ("tiny", "small", "big"),
        ("huge", "big", "small"),
        ("falls", "drops", "slides"),
    ],
)
def test_shipped_synonyms_lie_near(shipped: WordVectorEncoder, word: str, near: str, far: str) -> None:
    assert nearness(shipped, word, near) > nearness(shipped, word, far) + 0.05


def test_shipped_synonyms_of_the_list_lie_nearest_to_their_word(shipped: WordVectorEncoder) -> None:
    heads = functional.normalize(shipped.encode(list(SYNONYMS))[0][:, 0], dim=-1)
    for index, synonyms in enumerate(SYNONYMS.values()):
        features, mask = shipped.encode(synonyms.split())
        assert mask.shape[1] == 1, f"{synonyms}: one of them is not a whole word of the table"
        assert ((features[:, 0] @ heads.T).argmax(1) == index).all(), synonyms


def test_shipped_table(shipped: WordVectorEncoder) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 6e6
    # The words that the tabletop world tells things apart by stay apart.
    for group in (
        ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white"),
        ("metal", "wooden", "glass", "rubber"),
        ("ball", "cube", "cylinder"),
        ("drops", "tossed", "rolls", "slides", "hits", "knocks", "rests"),
        ("left", "right", "in", "out", "small", "big"),
    ):
        for i, first in enumerate(group):
            for second in group[:i]:
                assert nearness(shipped, first, second) < 0.9
    _, mask = shipped.encode(["zyxqwv jumbotronically 128x128", *EXTRA_WORDS.split()])
    assert mask[1:].sum(1).eq(1).all()
    assert shipped.encode(["zyxqwv"])[0].abs().sum(-1).ne(0).all()
