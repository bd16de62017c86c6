"""Encoders that transformers defines in its own code, and the timm repositories that hold the same networks.

hf_ssl trains timm's encoders. A repository of transformers is therefore answered with its twin.
"""

_DINO_V2 = ("small", "base", "large", "giant")
_DINO_V3 = {
    "vits16": "vit_small_patch16_dinov3",
    "vits16plus": "vit_small_plus_patch16_dinov3",
    "vitb16": "vit_base_patch16_dinov3",
    "vitl16": "vit_large_patch16_dinov3",
    "vith16plus": "vit_huge_plus_patch16_dinov3",
    "vit7b16": "vit_7b_patch16_dinov3",
}
_CONVNEXT_V2 = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")

_DINO_TWINS = {
    **{f"facebook/dinov2-{size}": f"vit_{size}_patch14_dinov2.lvd142m" for size in _DINO_V2},
    **{f"facebook/dinov2-with-registers-{size}": f"vit_{size}_patch14_reg4_dinov2.lvd142m" for size in _DINO_V2},
    **{f"facebook/dinov3-{size}-pretrain-lvd1689m": f"{name}.lvd1689m" for size, name in _DINO_V3.items()},
    **{f"facebook/dinov3-{size}-pretrain-sat493m": f"{_DINO_V3[size]}.sat493m" for size in ("vitl16", "vit7b16")},
    **{
        f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m": f"convnext_{size}.dinov3_lvd1689m"
        for size in ("tiny", "small", "base", "large")
    },
}

_VIT_TWINS = {
    "google/vit-base-patch16-224": "vit_base_patch16_224.orig_in21k_ft_in1k",
    "google/vit-base-patch16-384": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "google/vit-base-patch16-224-in21k": "vit_base_patch16_224.orig_in21k",
    "google/vit-base-patch32-224-in21k": "vit_base_patch32_224.orig_in21k",
    "google/vit-large-patch16-224-in21k": "vit_large_patch16_224.orig_in21k",
    "google/vit-large-patch32-224-in21k": "vit_large_patch32_224.orig_in21k",
    "google/vit-large-patch32-384": "vit_large_patch32_384.orig_in21k_ft_in1k",
    "google/vit-huge-patch14-224-in21k": "vit_huge_patch14_224.orig_in21k",
    "facebook/vit-mae-base": "vit_base_patch16_224.mae",
    "facebook/vit-mae-large": "vit_large_patch16_224.mae",
    "facebook/vit-mae-huge": "vit_huge_patch14_224.mae",
    **{f"facebook/deit-{size}-patch16-224": f"deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")},
    **{
        f"facebook/deit-{size}-distilled-patch16-224": f"deit_{size}_distilled_patch16_224.fb_in1k"
        for size in ("tiny", "small", "base")
    },
    "facebook/deit-base-patch16-384": "deit_base_patch16_384.fb_in1k",
    "facebook/deit-base-distilled-patch16-384": "deit_base_distilled_patch16_384.fb_in1k",
}

_TEXT_AND_IMAGE_TWINS = {
    "openai/clip-vit-base-patch16": "vit_base_patch16_clip_quickgelu_224.openai",
    "openai/clip-vit-base-patch32": "vit_base_patch32_clip_quickgelu_224.openai",
    "openai/clip-vit-large-patch14": "vit_large_patch14_clip_quickgelu_224.openai",
    "openai/clip-vit-large-patch14-336": "vit_large_patch14_clip_quickgelu_336.openai",
    **{f"google/siglip-base-patch16-{side}": f"vit_base_patch16_siglip_{side}.webli" for side in (224, 256, 384, 512)},
    **{f"google/siglip-large-patch16-{side}": f"vit_large_patch16_siglip_{side}.webli" for side in (256, 384)},
    **{f"google/siglip-so400m-patch14-{side}": f"vit_so400m_patch14_siglip_{side}.webli" for side in (224, 384)},
    **{
        f"google/siglip2-base-patch16-{side}": f"vit_base_patch16_siglip_{side}.v2_webli"
        for side in (224, 256, 384, 512)
    },
    "google/siglip2-base-patch32-256": "vit_base_patch32_siglip_256.v2_webli",
    **{
        f"google/siglip2-large-patch16-{side}": f"vit_large_patch16_siglip_{side}.v2_webli" for side in (256, 384, 512)
    },
    "google/siglip2-so400m-patch14-224": "vit_so400m_patch14_siglip_224.v2_webli",
    "google/siglip2-so400m-patch14-384": "vit_so400m_patch14_siglip_378.v2_webli",
    **{
        f"google/siglip2-so400m-patch16-{side}": f"vit_so400m_patch16_siglip_{side}.v2_webli"
        for side in (256, 384, 512)
    },
    **{
        f"google/siglip2-giant-opt-patch16-{side}": f"vit_giantopt_patch16_siglip_{side}.v2_webli"
        for side in (256, 384)
    },
}

_CONVOLUTIONAL_TWINS = {
    "microsoft/resnet-18": "resnet18.tv_in1k",
    "microsoft/resnet-26": "resnet26.bt_in1k",
    "microsoft/resnet-34": "resnet34.bt_in1k",
    "microsoft/resnet-50": "resnet50.a1_in1k",
    "microsoft/resnet-101": "resnet101.a1h_in1k",
    "microsoft/resnet-152": "resnet152.a1h_in1k",
    **{f"facebook/convnext-{size}-224": f"convnext_{size}.fb_in1k" for size in ("tiny", "small", "base", "large")},
    **{f"facebook/convnext-{size}-224-22k": f"convnext_{size}.fb_in22k" for size in ("base", "large", "xlarge")},
    **{
        f"facebook/convnext-{size}-{side}-22k-1k": f"convnext_{size}.fb_in22k_ft_in1k{suffix}"
        for size in ("tiny", "small", "base", "large", "xlarge")
        for side, suffix in ((224, ""), (384, "_384"))
    },
    **{f"facebook/convnextv2-{size}-1k-224": f"convnextv2_{size}.fcmae_ft_in1k" for size in _CONVNEXT_V2},
    **{
        f"facebook/convnextv2-{size}-22k-{side}": f"convnextv2_{size}.fcmae_ft_in22k_in1k{suffix}"
        for size in ("nano", "tiny", "base", "large")
        for side, suffix in ((224, ""), (384, "_384"))
    },
}

_SWIN_TWINS = {
    **{
        f"microsoft/swin-{size}-patch4-window7-224": f"swin_{size}_patch4_window7_224.ms_in1k"
        for size in ("tiny", "small", "base")
    },
    "microsoft/swin-base-patch4-window12-384": "swin_base_patch4_window12_384.ms_in1k",
    "microsoft/swin-large-patch4-window7-224": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "microsoft/swin-large-patch4-window12-384": "swin_large_patch4_window12_384.ms_in22k_ft_in1k",
    **{
        f"microsoft/swin-{size}-patch4-window{window}-{side}-in22k": (
            f"swin_{size}_patch4_window{window}_{side}.ms_in22k"
        )
        for size in ("base", "large")
        for window, side in ((7, 224), (12, 384))
    },
    **{
        f"microsoft/swinv2-{size}-patch4-window{window}-256": f"swinv2_{size}_window{window}_256.ms_in1k"
        for size in ("tiny", "small", "base")
        for window in (8, 16)
    },
    **{
        f"microsoft/swinv2-{size}-patch4-window12-192-22k": f"swinv2_{size}_window12_192.ms_in22k"
        for size in ("base", "large")
    },
    **{
        f"microsoft/swinv2-{size}-patch4-window12to{window}-192to{side}-22kto1k-ft": (
            f"swinv2_{size}_window12to{window}_192to{side}.ms_in22k_ft_in1k"
        )
        for size in ("base", "large")
        for window, side in ((16, 256), (24, 384))
    },
}

TIMM_TWINS: dict[str, str] = {
    **_DINO_TWINS,
    **_VIT_TWINS,
    **_TEXT_AND_IMAGE_TWINS,
    **_CONVOLUTIONAL_TWINS,
    **_SWIN_TWINS,
}
"""timm name, with the tag of the weights, by repository of transformers."""
