"""Folders of small random models, of the very classes whose published weights evaluation reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
CAPTIONS = ["a slow cello", "fast techno drums with a bright synth", ""]


def draw_weights(model: Model) -> Model:
    """Weights by which signals keep their level: initial ones let them fade, and all clips would look alike."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        elif name.endswith(".original0"):
            nn.init.constant_(parameter, 1.5)
    return model


def write_clap(folder: Path, *, fusion: bool = False) -> None:
    """A ClapModel with its feature extractor and a tokenizer of the captions' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted({word for text in CAPTIONS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    audio = {
        "spec_size": 64, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
        "hidden_size": 32, "window_size": 4, "num_mel_bins": 16, "enable_fusion": fusion,
    }  # fmt: skip
    text = {
        "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 1,
    }  # fmt: skip
    ClapModel(ClapConfig(audio_config=audio, text_config=text, projection_dim=24)).save_pretrained(folder)
    # the default truncation, "fusion", does not fit a model without fusion, and is what some folders have
    ClapFeatureExtractor(feature_size=16, hop_length=4800, fft_window_size=2048).save_pretrained(folder)


def write_vggish(folder: Path) -> None:
    """torchvggish's tensors, with narrow dense layers, and its PCA, which is not used."""
    from presto_core.metrics.embedders.vggish import Vggish

    tensors = {name: value.contiguous() for name, value in draw_weights(Vggish(hidden=32)).state_dict().items()}
    save_file({**tensors, "pproc.pca_means": torch.zeros(128, 1)}, folder / "model.safetensors")


def write_ast(folder: Path) -> None:
    """An ASTForAudioClassification, as the published tagger is."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_length=200,
        num_mel_bins=32, num_labels=5,
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=32, max_length=200).save_pretrained(folder)


def write_encodec(folder: Path, *, stereo: bool = False) -> None:
    """An EncodecModel like the 24 kHz one, or like the 48 kHz one: stereo, in chunks of equal level."""
    from transformers import EncodecConfig, EncodecModel

    own = {
        "audio_channels": 2, "chunk_length_s": 1.0, "overlap": 0.01, "normalize": True,
        "norm_type": "time_group_norm", "use_causal_conv": False,
    }  # fmt: skip
    config = EncodecConfig(
        sampling_rate=8000, num_filters=4, hidden_size=16, upsampling_ratios=[8, 5, 4], codebook_size=8,
        codebook_dim=16, num_lstm_layers=1, **(own if stereo else {}),
    )  # fmt: skip
    draw_weights(EncodecModel(config)).save_pretrained(folder)


def write_dac(folder: Path) -> None:
    """A DacModel whose frames per second are no whole number."""
    from transformers import DacConfig, DacModel

    config = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 4, 8], decoder_hidden_size=32, upsampling_ratios=[8, 4, 2],
        n_codebooks=2, codebook_size=8, codebook_dim=4, sampling_rate=7000,
    )  # fmt: skip
    draw_weights(DacModel(config)).save_pretrained(folder)


def write_mert(folder: Path, **settings: Any) -> None:
    """A HubertModel with MERT-v1's config: its model type, its pointers to remote code and its own settings."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[8, 8],
        conv_kernel=[10, 8], conv_stride=[8, 8], num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2,
    )  # fmt: skip
    HubertModel(config).save_pretrained(folder)
    _use_former_names(folder / "model.safetensors")
    own = {
        "model_type": "mert_model", "architectures": ["MERTModel"], "sample_rate": 4000, "attention_relax": -1.0,
        "auto_map": {"AutoModel": "modeling_MERT.MERTModel"}, "deepnorm": False, "feature_extractor_cqt": False,
        "feature_extractor_cqt_bins": 336,
    }  # fmt: skip
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **own, **settings}))
    preprocessor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 4000, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def _use_former_names(file: Path) -> None:
    """Rename the weight norm's tensors as in the published checkpoint, which PyTorch wrote before 2.1."""
    former = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = load_file(file)
    for now, before in former.items():
        tensors = {name.replace(now, before): value for name, value in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})


WRITERS: dict[str, Callable[[Path], None]] = {
    "clap": write_clap,
    "vggish": write_vggish,
    "ast": write_ast,
    "encodec": write_encodec,
    "dac": write_dac,
    "mert": write_mert,
}


def write_folder(kind: str, folder: Path) -> Path:
    """Write a small random model, always the same, into a new folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    WRITERS[kind](folder)
    return folder
