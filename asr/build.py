"""The composition root: typed configuration → objects. Nothing below this module sees a config."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from asr import text
from asr.augment import (
    Codecs,
    FeatureAugmenter,
    MeasuredRooms,
    RecordedNoise,
    SimulatedNoise,
    SimulatedRooms,
    SoundLibrary,
    SpecAugment,
    VocalTractWarp,
    WaveformAugmenter,
    find_sounds,
)
from asr.config import (
    AugmentConfig,
    BeamConfig,
    BeamLmConfig,
    BiLstmConfig,
    CharTokenizerConfig,
    ConformerConfig,
    ConvGluConfig,
    CudaConfig,
    DecoderConfig,
    FeaturesConfig,
    FlashlightConfig,
    GreedyConfig,
    LogMelConfig,
    LossConfig,
    MfccConfig,
    ModelConfig,
    SentencePieceConfig,
    SpectrogramConfig,
    TextConfig,
    TokenizerConfig,
)
from asr.ctc import CTCLoss
from asr.ctc.variants import VariantLoss, Variants
from asr.decode.decoder import Decoder
from asr.decode.greedy import GreedyDecoder
from asr.errors import ConfigError
from asr.features import LogMel, LogSpectrogram, Mfcc, SpectralFeatures
from asr.models.acoustic import AcousticModel
from asr.models.bilstm import BiLstmEncoder
from asr.models.conformer import ConformerEncoder
from asr.models.conv_glu import ConvGluEncoder
from asr.models.encoder import Encoder
from asr.tokenizer import CharTokenizer, PartialTokenizer, SentencePieceTokenizer, Tokenizer

_FEATURES: Mapping[type[FeaturesConfig], Callable[..., SpectralFeatures]] = {
    LogMelConfig: LogMel,
    MfccConfig: Mfcc,
    SpectrogramConfig: LogSpectrogram,
}
_ENCODERS: Mapping[type[ModelConfig], Callable[..., Encoder]] = {
    BiLstmConfig: BiLstmEncoder,
    ConformerConfig: ConformerEncoder,
    ConvGluConfig: ConvGluEncoder,
}


def make_normalise(config: TextConfig) -> Callable[[str], str]:
    """Transcript normalisation with the options bound."""

    def normalise(transcript: str) -> str:
        return text.normalise(
            transcript,
            case=config.case,  # type: ignore[arg-type]
            keep_punctuation=config.keep_punctuation,
            wildcard=config.wildcard,
        )

    return normalise


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer trained on the (normalised) training text."""
    if isinstance(config, SentencePieceConfig):
        return SentencePieceTokenizer.train(
            texts,
            vocab_size=config.vocab_size,
            model_type=config.model_type,  # type: ignore[arg-type]
        )
    assert isinstance(config, CharTokenizerConfig)
    return CharTokenizer.train(texts)


def known_text(config: TextConfig, transcript: str) -> str:
    """What a (normalised) transcript says, without the marks of missing words."""
    return transcript if config.wildcard is None else transcript.replace(config.wildcard, " ")


def make_target_tokenizer(config: TextConfig, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer for training targets: one that knows about missing words where there may be some."""
    return tokenizer if config.wildcard is None else PartialTokenizer(tokenizer, config.wildcard)


def make_features(config: FeaturesConfig) -> SpectralFeatures:
    """The front-end."""
    return _FEATURES[type(config)](**_options(config))


def make_acoustic_model(features: FeaturesConfig, model: ModelConfig, vocab_size: int) -> AcousticModel:
    """Front-end and encoder, with fresh weights."""
    front_end = make_features(features)
    encoder = _ENCODERS[type(model)](num_bins=front_end.num_bins, vocab_size=vocab_size, **_options(model))
    return AcousticModel(front_end, encoder)


def make_augmenters(
    config: AugmentConfig, features: SpectralFeatures
) -> tuple[WaveformAugmenter, FeatureAugmenter]:
    """What changes waveforms (in the loader) and what changes features (on the device).

    Raises:
        ConfigError: there are no recordings of noise or rooms where they should be, or these features have no
            frequencies that a vocal tract could move.
    """
    on_waveforms = WaveformAugmenter(
        speed_factors=config.speed_factors,
        gain_db=config.gain_db,
        rooms=_make_rooms(config, features.sample_rate),
        noise=_make_noise(config, features.sample_rate),
        codecs=_make_codecs(config, features.sample_rate),
    )
    seconds_per_mask = config.seconds_per_time_mask
    masks = SpecAugment(
        num_time_masks=config.num_time_masks,
        frames_per_time_mask=None if seconds_per_mask is None else seconds_per_mask / features.hop_seconds,
        max_time_frames=round(config.time_mask_seconds / features.hop_seconds),
        max_time_share=config.time_mask_share,
        num_mel_masks=config.num_mel_masks,
        max_mel_share=config.mel_mask_share,
    )
    return on_waveforms, FeatureAugmenter(_make_vocal_tract(config, features), masks)


def _make_vocal_tract(config: AugmentConfig, features: SpectralFeatures) -> VocalTractWarp | None:
    if config.vtlp_factors == [1.0, 1.0]:
        return None
    bin_hertz = features.bin_hertz()
    if bin_hertz is None:
        raise ConfigError(
            f"augment.vtlp_factors={config.vtlp_factors}: cepstra (features=mfcc) have no frequency axis to warp; "
            "take features=logmel, or augment.vtlp_factors=[1.0,1.0]"
        )
    return VocalTractWarp(
        bin_hertz=bin_hertz,
        highest_hertz=features.sample_rate / 2,
        factors=(config.vtlp_factors[0], config.vtlp_factors[1]),
    )


def _make_rooms(config: AugmentConfig, sample_rate: int) -> MeasuredRooms | SimulatedRooms | None:
    if config.reverb_probability == 0:
        return None
    if config.reverb_responses is not None:
        library = _make_library(config, config.reverb_responses, "augment.reverb_responses", sample_rate)
        return MeasuredRooms(library, probability=config.reverb_probability)
    return SimulatedRooms(
        sample_rate=sample_rate,
        probability=config.reverb_probability,
        rt60_seconds=(config.reverb_seconds[0], config.reverb_seconds[1]),
        direct_db=(config.reverb_direct_db[0], config.reverb_direct_db[1]),
    )


def _make_noise(config: AugmentConfig, sample_rate: int) -> RecordedNoise | SimulatedNoise | None:
    probability, snr_db = config.noise_probability, (config.noise_snr_db[0], config.noise_snr_db[1])
    if probability == 0:
        return None
    if config.noise is not None:
        library = _make_library(config, config.noise, "augment.noise", sample_rate)
        return RecordedNoise(library, probability=probability, snr_db=snr_db)
    return SimulatedNoise(sample_rate=sample_rate, probability=probability, snr_db=snr_db)


def _make_codecs(config: AugmentConfig, sample_rate: int) -> Codecs | None:
    if config.codec_probability == 0:
        return None
    return Codecs(config.codecs, sample_rate=sample_rate, probability=config.codec_probability)


def _make_library(config: AugmentConfig, path: str, option: str, sample_rate: int) -> SoundLibrary:
    cache_bytes = int(config.sound_cache_gib * 2**30)
    return SoundLibrary(find_sounds(path, option), sample_rate=sample_rate, cache_bytes=cache_bytes)


def make_loss(config: LossConfig, blank_id: int) -> CTCLoss:
    """CTC loss per utterance, batch-first. The encoder's output is normalised by construction."""
    return CTCLoss(
        blank=blank_id,
        reduction="none",
        inputs="log_probs",
        layout="NTC",
        backend=config.backend,  # type: ignore[arg-type]
        check=False,
    )


def make_training_loss(config: LossConfig, text_config: TextConfig, tokenizer: Tokenizer) -> VariantLoss:
    """What training minimises: CTC with the configured variants."""
    variants = Variants(
        consistency=config.consistency_weight,
        intermediate=config.intermediate_weight,
        blank_penalty=config.blank_penalty,
        prior=config.prior_weight,
        entropy=config.entropy_weight,
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma,
        wildcard_penalty=None if text_config.wildcard is None else config.wildcard_penalty,
    )
    return VariantLoss(
        variants,
        vocab_size=tokenizer.vocab_size,
        blank_id=tokenizer.blank_id,
        backend=config.backend,  # type: ignore[arg-type]
    )


def masks_of_views(augment: AugmentConfig, loss: LossConfig) -> AugmentConfig:
    """With CR-CTC there are more time masks, and they may cover more (Yao et al. 2024)."""
    if not loss.consistency_weight:
        return augment
    factor = loss.consistency_mask_factor
    return dataclasses.replace(
        augment,
        num_time_masks=round(augment.num_time_masks * factor),
        time_mask_share=min(1.0, augment.time_mask_share * factor),
    )


def make_decoder(config: DecoderConfig, tokenizer: Tokenizer, seconds_per_frame: float) -> Decoder:
    """The configured decoder."""
    if isinstance(config, GreedyConfig):
        return GreedyDecoder(tokenizer, seconds_per_frame)
    if isinstance(config, FlashlightConfig):
        from asr.decode.flashlight import FlashlightDecoder, make_search

        search = make_search(
            tokenizer,
            beam_width=config.beam_width,
            score_gap=config.score_gap,
            max_tokens=config.max_tokens,
            lexicon_path=config.lexicon,
            lm_path=config.lm,
            lm_unit=config.lm_unit,  # type: ignore[arg-type]
            alpha=config.alpha,
            beta=config.beta,
        )
        return FlashlightDecoder(tokenizer, seconds_per_frame, search)
    if isinstance(config, CudaConfig):
        from asr.decode import cuda

        on_gpu = cuda.make_search(
            tokenizer, beam_width=config.beam_width, blank_skip_threshold=config.blank_skip_threshold
        )
        return cuda.CudaDecoder(tokenizer, seconds_per_frame, on_gpu)
    assert isinstance(config, BeamConfig)
    # Imported here: the compiler behind the search is slow to load.
    from asr.decode.beam import BeamDecoder, Pruning
    from asr.decode.scorer import make_scorer

    pruning = Pruning(config.beam_width, config.score_gap, config.token_gap, config.max_tokens)
    phrases = dict.fromkeys(config.hotwords, config.hotword_weight)
    if isinstance(config, BeamLmConfig):
        words_and_lm = {
            "lm_path": config.lm,
            "lm_unit": config.lm_unit,
            "vocabulary": config.vocabulary,
            "alpha": config.alpha,
            "beta": config.beta,
            "unknown_penalty": config.unknown_penalty,
        }
    else:
        words_and_lm = {"vocabulary": "open" if config.lexicon is None else "closed"}
    scorer = make_scorer(
        tokenizer,
        lexicon_path=config.lexicon,
        phrases=phrases,
        phrase_path=config.hotword_file,
        phrase_weight=config.hotword_weight,
        **words_and_lm,  # type: ignore[arg-type]
    )
    return BeamDecoder(
        tokenizer, seconds_per_frame, pruning=pruning, scorer=scorer, num_threads=config.num_threads
    )


def _options(config: object) -> dict[str, Any]:
    """Every option except the one that chose the class: each must be a parameter of that class."""
    return {name: value for name, value in vars(config).items() if name != "kind"}
