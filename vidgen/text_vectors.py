"""Build the table of ``vidgen.text.WordVectorEncoder`` from a sentence encoder.

    python -m vidgen.text_vectors --encoder FOLDER --output DIR

FOLDER is a BERT-like sentence encoder with a WordPiece vocabulary and mean pooling, such as all-MiniLM-L6-v2 (the
shipped table is made from it). A word's vector is the sentence embedding of that word alone, reduced by principal
components; a short list of synonyms is then drawn towards the words that they stand for.
"""

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from . import cli
from .errors import InputError
from .text import WordVectorEncoder

WORD = re.compile(r"(##)?([a-z]+|[0-9]{1,2})")

EXTRA_WORDS = """
acrylic anticlockwise applauds apricot aquamarine barks bashes bead beeping beeps bicyclist bluish bokeh bounces
bouncy bumping buzzes campfire canister canisters carpeted catapulted cerulean chartreuse chime chimes chirping chirps
chromed chucked chucks chunky cityscape clack clacking clacks clang clanging clangs clank clanking clanks claps
clatter clattering clatters clink clinking clinks closeup clunk clunking clunks collide collides colliding coughs
counterclockwise countertop crackle crackles crackling croaking croaks cubes cubical cuboid cuboids cyan diagonally
dings dislodged dislodges dollies dollying drips drizzle ellipsoid firework flings floorboard floorboards foamy
frosted fuchsia glassy glides globes grayish gurgles gurgling hexagonal hisses honking honks hops howls hums hurls
immobile inwards iridescent jingles jingling jogger khaki kittens laminate latex leftward leftwards lilac linoleum lob
lobbed lobs magenta marbles matte mauve meowing meows minuscule monochrome mooing moos multicolored multicoloured
neighing neighs noiseless noiselessly nudge nudges nudging ochre orangey orbs outwards overturning overturns ovoid
panned panning panoramic pans papery parquet pastel patter pebble periwinkle photorealistic pinging pings pinkish
planks plasticky plop plops plummeted plummeting plummets plunges plywood polyhedron pours puppies purplish purring
purrs pyramids quacking quacks raindrop raindrops ramming rattles rebounding resonant rightward rightwards roars
rotates rubberized rubbery rumbles rusted saffron scooting scoots scrapes screech screeches screeching seagull
seagulls seascape seashore shatters shoves silicone sizeable sizzle sizzles sizzling skateboard skateboarder
skateboarding skates skid skidded skidding skids skimming skims skyscrapers slithering slithers smacking smacks
smashes sneezes sneezing snores snoring snowboarder snowboarding snowflake snowflakes soars splashes splashing
splatters springy squeaking squeaks squishy steadicam strolling strolls surfers sways tabletop tabletops tangerine
taupe teal teeny tetrahedron thudding thuds thumps thunderstorm thunderstorms tiling tilts timelapse tinkle tinkles
tinkling tins topple topples toppling torus tosses trundle trundles trundling tumbles twirling twirls umber unmoving
vermilion vermillion waxy whacks whistles wobble wobbles wobbling woolen zoomed zooming zooms
"""
"""Words of what can be seen and heard that the usual vocabulary cuts into pieces; here they get a row of their own."""

SYNONYMS = {
    "red": "crimson scarlet ruby maroon vermilion vermillion burgundy cherry reddish",
    "green": "emerald jade lime olive mint moss chartreuse greenish",
    "blue": "azure navy cobalt sapphire indigo cerulean bluish",
    "yellow": "golden gold lemon mustard saffron canary yellowish",
    "purple": "violet lilac lavender mauve magenta plum purplish",
    "orange": "tangerine amber apricot pumpkin orangey",
    "cyan": "turquoise teal aqua aquamarine",
    "white": "ivory snowy pearl whitish",
    "ball": "orb orbs globe globes spherical",
    "cube": "cuboid cubical brick crate dice",
    "cylinder": "cylindrical tube barrel canister",
    "metal": "iron aluminum aluminium brass chrome chromed copper titanium",
    "wooden": "timber oak pine plywood birch walnut",
    "glass": "crystal glassy transparent",
    "rubber": "rubbery rubberized latex silicone elastic bouncy",
    "small": "miniature petite mini minuscule teeny",
    "big": "huge giant enormous gigantic massive",
    "concrete": "cement",
    "drops": "plummets tumbles plunges",
    "tossed": "flung hurled lobbed chucked",
    "rolls": "trundles",
    "slides": "slips glides skids",
    "hits": "smashes slams crashes smacks whacks",
    "knocks": "topples shoves",
    "rests": "sits stands",
    "orbits": "circles revolves",
    "left": "leftward leftwards",
    "right": "rightward rightwards",
}
"""Where a sentence encoder's sense of a single word is weak. Above all it knows that crimson and azure are colours, but
hardly which: without this list 6 of 28 shades lie nearest to the right one of eight colours."""


def main() -> None:
    parser = argparse.ArgumentParser(description="build the table of word vectors that the small text encoder reads")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a BERT-like sentence encoder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the text encoder to")
    parser.add_argument("--dim", type=int, default=80, help="length of a word's vector")
    args = parser.parse_args()
    words, embeddings = embed_vocabulary(args.encoder)
    vectors = retrofit(words, reduce(embeddings, args.dim), SYNONYMS)
    encoder = WordVectorEncoder.from_table(words, vectors.half())
    encoder.save_pretrained(args.output)
    size_mb = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
    print(f"{args.output}: {len(words)} words and pieces, {args.dim} numbers each, {size_mb:.1f} MB")


@torch.inference_mode()
def embed_vocabulary(folder: Path, batch_size: int = 256) -> tuple[list[str], Tensor]:
    """Words and ``##pieces`` of the encoder's vocabulary (V), and the unit-length sentence embedding of each (V, D).

    Raises:
        InputError: the folder holds no such encoder.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"no encoder can be loaded from {folder}: {str(error).splitlines()[0]}") from error
    word_ids: dict[str, int] = tokenizer.get_vocab()
    words = [word for word in sorted(word_ids, key=word_ids.__getitem__) if WORD.fullmatch(word)]
    words += sorted(set(EXTRA_WORDS.split()) - set(words))
    inner = [[word_ids[word]] if word in word_ids else tokenizer(word).input_ids[1:-1] for word in words]
    # Equal lengths share a batch, so that none is padded.
    order = sorted(range(len(words)), key=lambda index: len(inner[index]))
    embeddings = torch.empty(len(words), model.config.hidden_size)
    start = 0
    with tqdm(total=len(words), unit="word") as progress:
        while start < len(order):
            length = len(inner[order[start]])
            batch = [i for i in order[start : start + batch_size] if len(inner[i]) == length]
            ids = torch.tensor([[tokenizer.cls_token_id, *inner[i], tokenizer.sep_token_id] for i in batch])
            embeddings[batch] = functional.normalize(model(input_ids=ids).last_hidden_state.mean(1), dim=-1)
            start += len(batch)
            progress.update(len(batch))
    return words, embeddings


def reduce(embeddings: Tensor, dim: int) -> Tensor:
    """(V, D) to (V, dim): the leading principal components, each divided by the fourth root of its variance.

    Half-way between plain components, in which the few that carry topic drown what tells red from blue, and full
    whitening, in which noise weighs as much as meaning. The mean square of the result is 1.
    """
    centred = (embeddings - embeddings.mean(0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim]
    vectors = centred @ directions / variances**0.25
    return (vectors / vectors.square().mean().sqrt()).float()


def retrofit(words: list[str], vectors: Tensor, lexicon: dict[str, str]) -> Tensor:
    """(V, dim) with each synonym moved half-way to its head word.

    One step of Faruqui et al. 2015 (arXiv 1411.4166, eq. 1) from the synonyms' side; the head words stay in place.
    """
    rows = {word: row for row, word in enumerate(words)}
    vectors = vectors.clone()
    for head, synonyms in lexicon.items():
        if head not in rows:
            continue
        known = [rows[word] for word in synonyms.split() if word in rows]
        vectors[known] = (vectors[known] + vectors[rows[head]]) / 2
    return vectors


if __name__ == "__main__":
    cli.run(main)
