"""Published pipelines' own classes, built with a few channels and random weights, and saved to a folder.

``FAMILIES[name](folder)`` writes one; nothing is downloaded: the tokenizers know letters only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from .tiny_parts import (
    TextOnlyProcessor,
    byte_vocabulary,
    gemma_tokenizer,
    llama_tokenizer,
    qwen_tokenizer,
    t5_encoder,
    t5_tokenizer,
    wan_vae,
)


def ltx_video() -> Any:
    channels, layers, off = (8, 8, 8, 8), (1, 1, 1, 1, 1), (False, False, False, False)
    scaling = (True, True, False, False)
    return diffusers.LTXPipeline(
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
            num_layers=1, caption_channels=32,
        ),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=channels, decoder_block_out_channels=channels,
            layers_per_block=layers, decoder_layers_per_block=layers, spatio_temporal_scaling=scaling,
            decoder_spatio_temporal_scaling=scaling, decoder_inject_noise=(*off, False), upsample_residual=off,
            upsample_factor=(1, 1, 1, 1), patch_size=1, patch_size_t=1,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


def ltx2() -> Any:
    """Its spectrograms are of 16 kHz, its waveforms of 24 kHz."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    text = {
        "vocab_size": 512, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=500, eoi_token_index=501,
        image_token_index=502,
    )  # fmt: skip
    return diffusers.LTX2Pipeline(
        transformer=diffusers.LTX2VideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
            audio_cross_attention_dim=8, num_layers=29, caption_channels=16, rope_double_precision=False,
            rope_type="split",
        ),
        connectors=LTX2TextConnectors(
            caption_channels=16, text_proj_in_factor=3, video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=8, video_connector_num_layers=1,
            video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
            rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
        ),
        vae=diffusers.AutoencoderKLLTX2Video(
            latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
            decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
            upsample_factor=(1,), patch_size=1, patch_size_t=1, decoder_causal=False,
        ),
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
            resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", mid_block_add_attention=False,
            sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8,
        ),
        vocoder=LTX2Vocoder(
            in_channels=16, hidden_channels=64, out_channels=2, upsample_kernel_sizes=[16, 15, 8, 4],
            upsample_factors=[6, 5, 4, 2], resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=24000,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=transformers.Gemma3ForConditionalGeneration(config).eval(),
        tokenizer=gemma_tokenizer(),
    )  # fmt: skip


def wan_like(pipeline: Any, transformer: Any, scheduler: Any = None, in_channels: int = 16, **more: Any) -> Any:
    """Wan, and the families that are built as it is."""
    return pipeline(
        transformer=transformer(
            num_attention_heads=2, attention_head_dim=12, in_channels=in_channels, out_channels=16, text_dim=32,
            freq_dim=256, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
        ),
        vae=wan_vae(),
        scheduler=scheduler
        or diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        **more,
    )  # fmt: skip


def wan() -> Any:
    return wan_like(diffusers.WanPipeline, diffusers.WanTransformer3DModel)


def wan22() -> Any:
    """Two transformers, of which the second takes the less noisy steps."""
    first = wan()
    torch.manual_seed(1)
    other = diffusers.WanTransformer3DModel.from_config(first.transformer.config)
    return diffusers.WanPipeline(**(first.components | {"transformer_2": other}), boundary_ratio=0.875)


def wan_i2v() -> Any:
    """Wan 2.2's: the picture comes as latents beside the noise, without an image encoder."""
    without = {"image_encoder": None, "image_processor": None}
    return wan_like(diffusers.WanImageToVideoPipeline, diffusers.WanTransformer3DModel, in_channels=36, **without)


def skyreels_v2() -> Any:
    return wan_like(diffusers.SkyReelsV2Pipeline, diffusers.SkyReelsV2Transformer3DModel)


def anyflow() -> Any:
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    return wan_like(diffusers.AnyFlowPipeline, diffusers.AnyFlowTransformer3DModel, scheduler)


def sana_video() -> Any:
    config = transformers.Gemma2Config(
        vocab_size=512, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4,
    )  # fmt: skip
    return diffusers.SanaVideoPipeline(
        transformer=diffusers.SanaVideoTransformer3DModel(
            in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=1,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8,
            sample_size=30, rope_max_seq_len=128,
        ),
        vae=wan_vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        text_encoder=transformers.Gemma2Model(config).eval(),
        tokenizer=gemma_tokenizer(),
    )  # fmt: skip


def kandinsky5() -> Any:
    """The silent one before Kandinsky 6; its published processor around the tokenizer would need torchvision."""
    return diffusers.Kandinsky5T2VPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, patch_size=(1, 2, 2),
            model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 2, 2),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        **kandinsky_parts(),
    )  # fmt: skip


def ltx25() -> Any:
    """LTX-2.5: LTX-2 whose decoder is itself a diffusion model; modular only."""
    first = ltx2()
    torch.manual_seed(1)
    decoder = diffusers.LTX2VideoDiffusionDecoderModel(
        latent_channels=4, patch_size=1, decoder_head_dim=8, decoder_stage_channels=(16, 8, 8, 8, 8),
        decoder_stage_depths=(1, 1, 1, 1, 1), decoder_stage_kernels=((1, 3, 3),) * 4, decoder_t_emb_dim=16,
        decoder_upsample_strides=((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)), decoder_stage5_kernel=(1, 3, 3),
        decoder_upsample_channel_reductions=(2, 1, 1, 1), spatial_compression_ratio=2, temporal_compression_ratio=2,
    )  # fmt: skip
    pipeline = diffusers.LTX25ModularPipeline()
    pipeline.update_components(**first.components, diffusion_decoder=decoder)
    return pipeline


def cogvideox() -> Any:
    channels = (8, 8, 8, 8)
    return diffusers.CogVideoXPipeline(
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
            text_embed_dim=32, num_layers=1, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=226,
        ),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=channels, latent_channels=4, layers_per_block=1, norm_num_groups=2,
        ),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


def mochi() -> Any:
    return diffusers.MochiPipeline(
        transformer=diffusers.MochiTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
            text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
        ),
        vae=diffusers.AutoencoderKLMochi(
            latent_channels=12, encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


def hunyuan_video() -> Any:
    clip_special = ("<|startoftext|>", "<|endoftext|>")
    llama = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=37, num_attention_heads=4, num_hidden_layers=3, vocab_size=300,
        pad_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    clip = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=300,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return diffusers.HunyuanVideoPipeline(
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=1, text_embed_dim=16, pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=transformers.LlamaModel(llama).eval(),
        tokenizer=llama_tokenizer(),
        text_encoder_2=transformers.CLIPTextModel(clip).eval(),
        tokenizer_2=transformers.CLIPTokenizer(vocab=byte_vocabulary(*clip_special), merges=[], model_max_length=77),
    )  # fmt: skip


def hunyuan_video15() -> Any:
    qwen = transformers.Qwen2_5_VLTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=512, rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    t5 = transformers.T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return diffusers.HunyuanVideo15Pipeline(
        transformer=diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=32,
            image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
            temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=transformers.Qwen2_5_VLTextModel(qwen).eval(),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(t5).eval(),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
    )  # fmt: skip


def kandinsky_parts() -> dict[str, Any]:
    """What Kandinsky 5 and 6 have in common: the VAE and two text encoders."""
    qwen = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 512,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        },
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16},
    )  # fmt: skip
    clip = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=300,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    clip_special = ("<|startoftext|>", "<|endoftext|>")
    return {
        "vae": diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        ),
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(qwen).eval(),
        "tokenizer": qwen_tokenizer(),
        "text_encoder_2": transformers.CLIPTextModel(clip).eval(),
        "tokenizer_2": transformers.CLIPTokenizer(vocab=byte_vocabulary(*clip_special), merges=[], model_max_length=77),
    }  # fmt: skip


def kandinsky6() -> Any:
    """The published one has a processor around its tokenizer, which would need torchvision."""
    from diffusers.pipelines.kandinsky6 import Kandinsky6TI2VAPipeline

    return Kandinsky6TI2VAPipeline(
        transformer=diffusers.Kandinsky6Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, patch_size=(1, 2, 2),
            model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 2, 2), visual_cond=True,
            in_audio_dim=4, out_audio_dim=4, visual_token_type_num_embeddings=2,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        **kandinsky_parts(),
        audio_vae=diffusers.MMAudioVAE(
            mel_bins=8, latent_channels=4, hidden_channels=8, channel_multipliers=(1, 1, 1), layers_per_block=1,
            sample_rate=44100, n_fft=64, hop_length=512,
        ),
        vocoder=diffusers.MMAudioVocoder(
            num_mels=8, upsample_initial_channel=64, resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3, 5),),
        ),
    )  # fmt: skip


def cosmos3() -> Any:
    """Without its safety checker, which is a package of its own."""
    return diffusers.Cosmos3OmniPipeline(
        transformer=diffusers.Cosmos3OmniTransformer(
            head_dim=6, hidden_act="relu2", hidden_size=6, intermediate_size=12, latent_channel=16,
            latent_patch_size=1, num_attention_heads=1, num_hidden_layers=1, num_key_value_heads=1,
            patch_latent_dim=16, qk_norm_for_text=False, rope_axes_dim=[1, 1, 1], vocab_size=512, sound_gen=True,
            sound_dim=4, sound_latent_fps=25.0,
        ),
        vae=wan_vae(),
        text_tokenizer=qwen_tokenizer(),
        scheduler=diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        sound_tokenizer=diffusers.Cosmos3AVAEAudioTokenizer(
            sampling_rate=16000, hop_size=640, input_channels=1, stereo=True, enc_dim=4, enc_num_blocks=1, enc_n_fft=8,
            enc_hop_length=2, enc_latent_dim=8, enc_c_mults=(1, 1), enc_strides=(20, 32), vocoder_input_dim=4,
            dec_dim=4, dec_c_mults=(1, 2), dec_strides=(32, 20), dec_out_channels=2,
        ),
        enable_safety_checker=False,
    )  # fmt: skip


def minimax_h3() -> Any:
    """Modular only. It conditions on the 50th hidden state, so its text encoder is deep, if narrow."""
    text = {
        "vocab_size": 512, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 51, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 8,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    qwen = transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
    pipeline = diffusers.MiniMaxH3ModularPipeline(diffusers.MiniMaxH3Blocks().get_workflow("t2va"))
    pipeline.update_components(
        transformer=diffusers.MiniMaxH3Transformer3DModel(
            num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=1, num_refiner_layers=1,
            ffn_dim=32, in_channels=4, audio_in_channels=8, text_dim=8, freq_dim=8, time_embed_hidden_dim=24,
            time_embed_dim=16, rope_freq_dim=2,
        ),
        vae=diffusers.AutoencoderKLMiniMaxH3(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
            spatial_downsample_factors=(2, 2, 2, 2), temporal_downsample_factors=(2, 2, 1, 1), norm_num_groups=8,
            decoder_num_layers=1, decoder_num_attention_heads=2, decoder_attention_head_dim=8,
            decoder_num_register_tokens=2, decoder_ffn_mult=2, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4,
        ),
        audio_vae=diffusers.AutoencoderKLMiniMaxH3Audio(
            encoder_dim=4, encoder_rates=(20, 40), latent_dim=32, latent_channels=8, num_attention_heads=2,
            decoder_dim=16, decoder_rates=(40, 20), decoder_kernel_sizes=(80, 40), resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3),), latents_mean=[0.0] * 8, latents_std=[1.0] * 8,
        ),
        text_encoder=transformers.Qwen3VLForConditionalGeneration(qwen).eval(),
        tokenizer=qwen_tokenizer(),
        processor=TextOnlyProcessor(),
        scheduler=diffusers.MiniMaxH3Scheduler(),
        audio_scheduler=diffusers.MiniMaxH3Scheduler(),
    )  # fmt: skip
    return pipeline


FAMILIES: dict[str, Callable[[], Any]] = {
    "ltx": ltx_video, "ltx2": ltx2, "wan": wan, "wan22": wan22, "wan_i2v": wan_i2v, "cogvideox": cogvideox,
    "mochi": mochi, "hunyuan_video": hunyuan_video, "hunyuan_video15": hunyuan_video15, "kandinsky6": kandinsky6,
    "cosmos3": cosmos3, "minimax_h3": minimax_h3, "skyreels_v2": skyreels_v2, "anyflow": anyflow,
    "sana_video": sana_video, "kandinsky5": kandinsky5, "ltx25": ltx25,
}  # fmt: skip


def save(family: str, folder: Path) -> Path:
    """Build the family's pipeline with the same weights each time, and save it."""
    torch.manual_seed(0)
    try:
        pipeline = FAMILIES[family]()
    except (AttributeError, ImportError) as error:  # the diffusers of Python 3.10 is an older one
        pytest.skip(f"diffusers {diffusers.__version__}: {error}")
    pipeline.save_pretrained(str(folder))
    return folder
