"""What each VBench dimension needs in the package's own environment: modules, weights, and how to get them.

Names and addresses are those that ``vbench`` 0.1.5 uses (``init_submodules`` and the files of the dimensions).
"""

import os
from dataclasses import dataclass
from pathlib import Path

BASE_MODULES = ("vbench", "torch", "torchvision", "decord", "cv2")
LONG_MODULES = ("scenedetect", "moviepy", "scipy", "yaml", "easydict")
LONG_NEEDS = {"subject_consistency": ("dreamsim",), "background_consistency": ("dreamsim",)}
"""Imported by the long variant even where it is not used."""
INSTALL = {
    "detectron2": "pip install 'detectron2@git+https://github.com/facebookresearch/detectron2.git'",
    "clip": "pip install openai-clip",
    "cv2": "pip install opencv-python",
    "yaml": "pip install pyyaml",
    "moviepy": "pip install 'moviepy<2'",
    "vbench": "pip install vbench==0.1.5",
    "transformers": "pip install transformers==4.33.2",
}
"""Where the command is not ``pip install`` and the module's name."""


@dataclass(frozen=True)
class Weights:
    """A file or folder that must be there: under ``VBENCH_CACHE_DIR``, or under the home directory if it says ~."""

    file: str
    get: str
    """An address to load it from, or a shell command with {path}, {folder} and {above} for the places."""

    @property
    def path(self) -> Path:
        return Path(self.file).expanduser() if self.file.startswith("~") else cache_folder() / self.file

    @property
    def command(self) -> str:
        if self.get.startswith("http"):
            return f"wget -P '{self.path.parent}' '{self.get}'"
        places = {"path": self.path, "folder": self.path.parent, "above": self.path.parent.parent}
        return self.get.format(**{name: f"'{place}'" for name, place in places.items()})


def cache_folder() -> Path:
    """Where the package looks for weights."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")


_HUB = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
_CLIP_B = Weights(
    "clip_model/ViT-B-32.pt", f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
)
_CLIP_L = Weights(
    "clip_model/ViT-L-14.pt", f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
)
_DINO = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
_GRIT = Weights(
    "grit_model/grit_b_densecap_objectdet.pth",
    "https://datarelease.blob.core.windows.net/grit/models/grit_b_densecap_objectdet.pth",
)
_VICLIP = Weights("ViCLIP/ViClip-InternVid-10M-FLT.pth", f"{_HUB}/ViClip-InternVid-10M-FLT.pth")
_BPE = Weights(
    "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
    "https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
)
RAFT = Weights(
    "raft_model/models/raft-things.pth",
    "wget -P {above} https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip"
    " && unzip -d {above} {above}/models.zip",
)


@dataclass(frozen=True)
class Needs:
    modules: tuple[str, ...] = ()
    weights: tuple[Weights, ...] = ()


NEEDS = {
    "subject_consistency": Needs(
        (),
        (
            Weights(
                "dino_model/facebookresearch_dino_main", "git clone https://github.com/facebookresearch/dino {path}"
            ),
            Weights("dino_model/dino_vitbase16_pretrain.pth", _DINO),
            Weights("~/.cache/torch/hub/checkpoints/dino_vitbase16_pretrain.pth", _DINO),
        ),
    ),
    "background_consistency": Needs(("clip",), (_CLIP_B,)),
    "temporal_flickering": Needs(),
    "motion_smoothness": Needs(
        ("omegaconf",),
        (Weights("amt_model/amt-s.pth", "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth"),),
    ),
    "dynamic_degree": Needs(("easydict",), (RAFT,)),
    "aesthetic_quality": Needs(
        ("clip",),
        (
            _CLIP_L,
            Weights(
                "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
                "mkdir -p {folder} && wget -O {path} 'https://github.com/LAION-AI/aesthetic-predictor/blob/main/sa_0_4_vit_l_14_linear.pth?raw=true'",
            ),
        ),
    ),
    "imaging_quality": Needs(
        ("pyiqa",),
        (
            Weights(
                "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
                "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
            ),
        ),
    ),
    "object_class": Needs(("detectron2",), (_GRIT,)),
    "multiple_objects": Needs(("detectron2",), (_GRIT,)),
    "human_action": Needs(
        ("clip", "timm"),
        (
            Weights(
                "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth", f"{_HUB}/l16_ptk710_ftk710_ftk400_f16_res224.pth"
            ),
        ),
    ),
    "color": Needs(("detectron2",), (_GRIT,)),
    "spatial_relationship": Needs(("detectron2",), (_GRIT,)),
    "scene": Needs(
        ("transformers", "timm", "fairscale"),
        (
            Weights(
                "caption_model/tag2text_swin_14m.pth",
                "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
            ),
            Weights("~/.cache/huggingface/hub/models--bert-base-uncased", "huggingface-cli download bert-base-uncased"),
        ),
    ),
    "appearance_style": Needs(("clip",), (_CLIP_B,)),
    "temporal_style": Needs(("clip", "timm"), (_VICLIP, _BPE)),
    "overall_consistency": Needs(("clip", "timm"), (_VICLIP, _BPE)),
}


def missing(dimension: str, modules: dict[str, str | None], long: bool = False) -> list[tuple[str, str]]:
    """What a dimension lacks, each with the command that gets it.

    Args:
        modules: version of each module of the package's environment, None for one that is not installed, as the
            runner's ``check`` tells.
        long: for VBench-Long.
    """
    needs = NEEDS[dimension]
    names = [*BASE_MODULES, *needs.modules]
    if long:
        names += [*LONG_MODULES, *LONG_NEEDS.get(dimension, ())]
    lacking = [
        (f"the package {name}", INSTALL.get(name, f"pip install {name}"))
        for name in dict.fromkeys(names)
        if modules.get(name) is None
    ]
    return lacking + [(str(each.path), each.command) for each in needs.weights if not each.path.exists()]
