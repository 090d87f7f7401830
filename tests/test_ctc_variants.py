"""Loss variants: brute force over paths, hand arithmetic, finite differences; and each one learns in a real run."""

import csv
import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import encoder, feature_batch, front_end, with_statistics
from test_resume import RANDOM, assert_identical, interrupt_at, last_checkpoint, request
from tiny_model import write_checkpoint
from torch import Tensor

from asr import build, checkpoint
from asr.config import BiLstmConfig, GreedyConfig, LossConfig, TextConfig
from asr.ctc import CTCLoss
from asr.ctc.variants import (
    VariantLoss,
    Variants,
    divergence_from_other_view,
    divergence_from_uniform,
    frame_entropy,
)
from asr.errors import ConfigError, ManifestError, TextError
from asr.models.acoustic import AcousticModel
from asr.module import CtcModule
from asr.records import Emissions
from asr.report.json_report import read_report
from asr.text import normalise
from asr.tokenizer import CharTokenizer, PartialTokenizer, SentencePieceTokenizer
from asr.train import train
from asr.warm_start import take_over

Compose = Callable[..., Any]
VOCAB_SIZE, BLANK = 4, 1
WILDCARD = VOCAB_SIZE
ALL_ON = Variants(
    consistency=0.2,
    intermediate=0.3,
    blank_penalty=0.4,
    prior=0.3,
    entropy=0.1,
    label_smoothing=0.05,
    wildcard_penalty=0.7,
)


def make_loss(variants: Variants, backend: Any = "auto") -> VariantLoss:
    return VariantLoss(variants, vocab_size=VOCAB_SIZE, blank_id=BLANK, backend=backend)


def random_log_probs(seed: int, rows: int, frames: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, frames, VOCAB_SIZE, generator=generator, dtype=dtype)).log_softmax(-1)


def by_enumeration(scores: Tensor, target: list[int]) -> float:
    """Minus the log of the summed weight of all paths ``(frames,)`` that collapse to ``target``."""
    total = 0.0
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        labels = [label for label, _ in itertools.groupby(path) if label != BLANK]
        if labels == target:
            total += math.exp(sum(float(scores[frame, label]) for frame, label in enumerate(path)))
    return -math.log(total)


def loss_of(loss: VariantLoss, log_probs: Tensor, target: list[int]) -> Tensor:
    emissions = Emissions(log_probs, torch.full((len(log_probs),), log_probs.shape[1]))
    return loss(emissions, torch.tensor([target]), torch.tensor([len(target)])).total


# ------------------------------------------------------------------ what changes the CTC loss itself


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(3, 5),
    target=st.lists(st.sampled_from([0, 2, 3, WILDCARD]), min_size=1, max_size=2),
    blank_penalty=st.sampled_from([0.0, 0.8]),
    prior=st.sampled_from([0.0, 0.5]),
    wildcard_penalty=st.sampled_from([0.0, 0.6]),
)
def test_the_criterion_is_the_sum_over_all_paths(
    seed: int, frames: int, target: list[int], blank_penalty: float, prior: float, wildcard_penalty: float
) -> None:
    variants = Variants(blank_penalty=blank_penalty, prior=prior, wildcard_penalty=wildcard_penalty)
    loss = make_loss(variants)
    log_probs = random_log_probs(seed, 1, frames)
    probs = log_probs[0].exp()
    weights = torch.cat([probs, torch.full((frames, 1), math.exp(-wildcard_penalty))], dim=1)
    weights[:, BLANK] *= math.exp(-blank_penalty)
    if prior:
        priors = torch.tensor([0.2, 0.6, 0.15, 0.05])
        loss.log_prior.copy_(priors.log())
        weights[:, :VOCAB_SIZE] /= (priors * VOCAB_SIZE) ** prior
    assert float(loss_of(loss, log_probs, target)) == pytest.approx(
        by_enumeration(weights.log(), target), abs=1e-5
    )


def test_a_wildcard_leaves_its_frames_alone() -> None:
    """Where only the wildcard can be, nothing is asked of the model."""
    log_probs = random_log_probs(0, 1, 6).requires_grad_()
    # Two labels with one frame each at the ends of a long gap: certain about both.
    with torch.no_grad():
        log_probs[:, [0, 5]] = torch.tensor([1e-9, 1e-9, 1.0, 1e-9], dtype=torch.float64).log()
        log_probs[:, 1:5, BLANK] = log_probs[:, 1:5, 2] = -20.0
    loss_of(make_loss(Variants(wildcard_penalty=0.0)), log_probs, [2, WILDCARD, 2]).sum().backward()
    gradient = log_probs.grad
    assert gradient is not None
    assert gradient[0, 2:4].abs().max() < 1e-6
    assert gradient[0, 0, 2] == pytest.approx(-1.0, abs=1e-5)


def test_a_higher_focal_exponent_quietens_what_is_learned() -> None:
    log_probs = random_log_probs(3, 1, 4)
    plain = float(loss_of(make_loss(Variants()), log_probs, [2]))
    for gamma in (0.5, 2.0):
        focal = float(loss_of(make_loss(Variants(focal_gamma=gamma)), log_probs, [2]))
        assert focal == pytest.approx((1 - math.exp(-plain)) ** gamma * plain, abs=1e-6)
    certain = torch.full((1, 2, VOCAB_SIZE), -math.inf, dtype=torch.float64)
    certain[:, :, 2] = 0.0
    certain = certain.clamp_min(-1e4).requires_grad_()
    loss_of(make_loss(Variants(focal_gamma=0.5)), certain, [2]).sum().backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


# ------------------------------------------------------------------ what is added to it


def test_frame_terms_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    entropies = frame_entropy(probs.log()).tolist()
    assert entropies == pytest.approx([1.5 * math.log(2), math.log(3)])
    divergences = divergence_from_uniform(probs.log()).tolist()
    assert divergences == pytest.approx([(math.log(2 / 3) + 2 * math.log(4 / 3)) / 3, 0.0], abs=1e-12)
    views = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]], dtype=torch.float64).log()
    of_first = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    of_second = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence_from_other_view(views).flatten().tolist() == pytest.approx([of_first, of_second])


def test_each_view_moves_towards_the_other_which_stands_still() -> None:
    """The logits' gradient of KL(fixed ‖ p) is p - fixed."""
    logits = torch.randn(2, 3, VOCAB_SIZE, dtype=torch.float64, requires_grad=True)
    divergence_from_other_view(logits.log_softmax(-1)).sum().backward()
    probs = logits.detach().softmax(-1)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, probs - probs.flip(0))


def test_equal_views_agree_already() -> None:
    log_probs = random_log_probs(0, 2, 5)
    doubled = Emissions(log_probs.repeat(2, 1, 1), torch.tensor([5, 4, 5, 4]))
    found = make_loss(Variants(consistency=0.2))(doubled, torch.tensor([[0], [2]]), torch.tensor([1, 1]))
    single = make_loss(Variants())(
        Emissions(log_probs, torch.tensor([5, 4])), torch.tensor([[0], [2]]), torch.ones(2).long()
    )
    assert torch.allclose(found.total, single.total)
    assert found.parts["consistency"].abs().max() < 1e-12


def test_priors_follow_the_real_frames_and_begin_as_plain_ctc() -> None:
    log_probs = random_log_probs(5, 2, 6, torch.float32)
    emissions = Emissions(log_probs, torch.tensor([6, 3]))
    targets, target_lengths = torch.tensor([[0, 2], [3, 3]]), torch.tensor([2, 1])
    loss = make_loss(Variants(prior=0.3))
    plain = make_loss(Variants())(emissions, targets, target_lengths).total
    assert torch.allclose(loss(emissions, targets, target_lengths).total, plain, atol=1e-5)
    mean = torch.cat([log_probs[0], log_probs[1, :3]]).exp().mean(dim=0)
    assert torch.allclose(loss.log_prior.exp(), 0.99 * torch.full((4,), 0.25) + 0.01 * mean, atol=1e-6)
    assert not torch.allclose(loss(emissions, targets, target_lengths).total, plain, atol=1e-4)


def test_a_label_that_is_never_heard_keeps_a_prior() -> None:
    log_probs = torch.tensor([0.5, 0.5, 0.0, 0.0]).log().clamp_min(-1e4).expand(1, 3, -1)
    loss = make_loss(Variants(prior=0.5))
    loss.log_prior.copy_(torch.tensor([0.5, 0.5, 1e-12, 1e-12]).log())
    loss_of(loss, log_probs, [0])
    assert loss.log_prior.exp()[2:].tolist() == pytest.approx([1e-8, 1e-8])
    assert loss_of(loss, log_probs, [0]).isfinite().all()


# ------------------------------------------------------------------ together


def everything(variants: Variants, seed: int = 0) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Logits ``(2 layers, rows, 5, vocab)`` of two utterances, and the loss as a function of them."""
    rows = 2 * variants.num_views
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, rows, 5, VOCAB_SIZE, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([5, 3]).repeat(variants.num_views)
    gap = WILDCARD if variants.wildcard_penalty is not None else 0
    targets, target_lengths = torch.tensor([[2, gap, 3], [0, BLANK, BLANK]]), torch.tensor([3, 1])

    def loss(values: Tensor, backend: Any = "reference") -> Any:
        fresh = make_loss(variants, backend).double()
        last, earlier = values.log_softmax(-1)
        if fresh.log_prior is not None:
            fresh.log_prior.copy_(torch.tensor([0.2, 0.6, 0.15, 0.05]).log())
        return fresh(Emissions(last, lengths, (earlier,)), targets, target_lengths)

    return logits.requires_grad_(), loss


@pytest.mark.parametrize(
    "variants",
    [
        Variants(),
        Variants(intermediate=0.3),
        Variants(blank_penalty=0.5),
        Variants(prior=0.4),
        Variants(entropy=0.2),
        Variants(label_smoothing=0.2),
        Variants(focal_gamma=1.5),
        Variants(wildcard_penalty=0.5),
        dataclasses.replace(ALL_ON, consistency=0.0),  # its derivative is not that of its value, on purpose
    ],
    ids=str,
)
def test_derivatives_are_those_of_finite_differences(variants: Variants) -> None:
    logits, loss = everything(variants)
    assert torch.autograd.gradcheck(lambda values: loss(values).total, (logits,), atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "fused"])
def test_every_backend_gives_the_same(backend: str) -> None:
    logits, loss = everything(ALL_ON)
    expected = loss(logits)
    found = loss(logits, backend)
    assert torch.allclose(found.total, expected.total)
    (gradient,) = torch.autograd.grad(found.total.sum(), logits)
    (expected_gradient,) = torch.autograd.grad(expected.total.sum(), logits)
    assert torch.allclose(gradient, expected_gradient, atol=1e-8)


def test_the_total_is_the_weighted_sum_and_every_weight_matters() -> None:
    logits, loss = everything(ALL_ON)
    found = loss(logits)
    weights = {
        "ctc": 0.95 * 0.7,
        "intermediate": 0.95 * 0.3,
        "smoothing": 0.05,
        "consistency": 0.2,
        "entropy": -0.1,
    }
    assert found.parts.keys() == weights.keys()
    assert torch.allclose(found.total, sum(weights[name] * part for name, part in found.parts.items()))
    (gradient,) = torch.autograd.grad(found.total.sum(), logits)
    assert gradient[0].abs().amin(dim=2)[:, :3].gt(0).all()
    for field in dataclasses.fields(Variants):
        if field.name in {"wildcard_penalty", "focal_gamma", "consistency"}:
            continue
        _, without = everything(dataclasses.replace(ALL_ON, **{field.name: 0.0}))
        (other,) = torch.autograd.grad(without(logits).total.sum(), logits)
        assert not torch.allclose(gradient, other), field.name


def test_all_off_is_the_plain_loss_to_the_bit() -> None:
    log_probs = random_log_probs(1, 2, 6, torch.float32)
    lengths, targets, target_lengths = (
        torch.tensor([6, 4]),
        torch.tensor([[0, 2], [3, 0]]),
        torch.tensor([2, 1]),
    )
    plain = CTCLoss(blank=BLANK, reduction="none", layout="NTC", check=False)
    loss = make_loss(Variants())
    found = loss(Emissions(log_probs, lengths), targets, target_lengths)
    assert torch.equal(found.total, plain(log_probs, targets, lengths, target_lengths))
    assert loss.part_names == []
    assert not loss.state_dict()


def test_padding_changes_nothing() -> None:
    log_probs = random_log_probs(2, 4, 5)
    lengths = torch.tensor([5, 3, 5, 3])
    targets, target_lengths = torch.tensor([[2, WILDCARD], [0, BLANK]]), torch.tensor([2, 1])
    longer = torch.nn.functional.pad(log_probs, (0, 0, 0, 3), value=math.nan)
    longer[:, 5:] = random_log_probs(9, 4, 3)
    one, other = (
        make_loss(ALL_ON)(Emissions(x, lengths, (x,)), targets, target_lengths) for x in (log_probs, longer)
    )
    assert torch.allclose(one.total, other.total)


# ------------------------------------------------------------------ encoder


def test_intermediate_output_is_the_shared_layer_on_earlier_states() -> None:
    features = feature_batch([40, 23])
    model = with_statistics(encoder(rnn_layers=3, intermediate_layers=[1, 2])).eval()
    found = model(features, with_intermediate=True)
    assert len(found.intermediate) == 2
    assert model(features).intermediate == ()
    shorter = encoder(rnn_layers=1).eval()
    shorter.load_state_dict({name: model.state_dict()[name] for name in shorter.state_dict()})
    assert torch.allclose(found.intermediate[0], shorter(features).log_probs, atol=1e-6)
    assert torch.allclose(found.intermediate[0].exp().sum(-1), torch.ones(()))
    plain = encoder(rnn_layers=3).eval()
    plain.load_state_dict(model.state_dict())  # the same weights: nothing is added to the model
    assert torch.equal(plain(features).log_probs, found.log_probs)


def test_self_conditioning_acts_always_and_ignores_padding() -> None:
    options = {"rnn_layers": 2, "intermediate_layers": [1], "self_conditioning": True}
    model = with_statistics(encoder(**options)).eval()
    both = model(feature_batch([40, 23]))
    assert torch.equal(both.log_probs, model(feature_batch([40, 23]), with_intermediate=True).log_probs)
    alone = model(feature_batch([40, 23], extra=30))
    num_frames = int(both.log_prob_lengths[1])
    assert torch.allclose(alone.log_probs[1, :num_frames], both.log_probs[1, :num_frames], atol=1e-5)
    with torch.no_grad():
        model.conditioning.weight.zero_()
        model.conditioning.bias.zero_()
    unconditioned = encoder(rnn_layers=2).eval()
    unconditioned.load_state_dict(
        {name: weight for name, weight in model.state_dict().items() if "conditioning" not in name}
    )
    assert torch.allclose(model(feature_batch([40])).log_probs, unconditioned(feature_batch([40])).log_probs)
    assert not torch.allclose(model(feature_batch([40])).log_probs, both.log_probs[:1], atol=1e-3)


def test_a_warm_start_feeds_back_each_token_by_name() -> None:
    options = {"vocab_size": 4, "intermediate_layers": [1], "self_conditioning": True}
    own, other = (AcousticModel(front_end(), encoder(**options)) for _ in range(2))
    with torch.no_grad():
        other.encoder.conditioning.weight.normal_()
    take_over(other.state_dict(), ["<blank>", "x", "y", "z"], own, CharTokenizer(["z", "y", "x"]))
    found, given = own.encoder.conditioning.weight, other.encoder.conditioning.weight
    assert torch.equal(found, given[:, [0, 3, 2, 1]])


def test_checkpoints_from_before_these_options_still_load(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "old.ckpt")
    content = torch.load(path, weights_only=True)
    for name in ("intermediate_layers", "self_conditioning"):
        del content["recipe"]["config"]["model"][name]
    del content["recipe"]["config"]["text"]["wildcard"]
    torch.save(content, path)
    recogniser = checkpoint.load_recogniser(path, GreedyConfig(), torch.device("cpu"))
    assert recogniser.wildcard is None


# ------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["loss=cr_ctc", "augment=none"], ["loss.consistency_weight", "augment.num_time_masks"]),
        (["loss.consistency_mask_factor=3"], ["loss.consistency_mask_factor", "loss.consistency_weight"]),
        (["loss.wildcard_penalty=2"], ["loss.wildcard_penalty", "text.wildcard"]),
        (["model.intermediate_layers=[1]"], ["model.intermediate_layers", "loss.intermediate_weight"]),
        (["model.self_conditioning=true"], ["model.self_conditioning", "loss.intermediate_weight"]),
        (["loss=intermediate", "model.rnn_layers=1"], ["loss.intermediate_weight", "one"]),
        (["loss=intermediate", "model.intermediate_layers=[2]"], ["between 1 and 1"]),
        (["loss=intermediate", "model.rnn_layers=4", "model.intermediate_layers=[2,1]"], ["ascend"]),
        (["loss.focal_gamma=1", "loss=label_priors"], ["loss.focal_gamma", "loss.prior_weight"]),
        (["loss.label_smoothing=1"], ["loss.label_smoothing=1.0 must be below 1"]),
        (["loss.entropy_weight=-1"], ["loss.entropy_weight=-1.0 must be at least 0"]),
        (["text.wildcard=ab"], ["text.wildcard='ab'"]),
        (["text.wildcard=a"], ["text.wildcard='a'"]),
        (['text.wildcard="\'"'], ["text.wildcard"]),
    ],
)
def test_contradictions_are_refused(
    tiny_train_config: Compose, tmp_path: Path, overrides: list[str], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_train_config(tmp_path, "augment=light", "model.rnn_layers=2", *overrides)
    for words in named:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_middle_layer_is_read_unless_others_are_named(tiny_train_config: Compose, tmp_path: Path) -> None:
    found = tiny_train_config(tmp_path, "loss=intermediate", "model.rnn_layers=5")
    assert found.model.intermediate_layers == [2]
    found = tiny_train_config(
        tmp_path, "loss=intermediate", "model.rnn_layers=5", "model.intermediate_layers=[1,4]"
    )
    assert found.model.intermediate_layers == [1, 4]
    assert BiLstmConfig().intermediate_layers == []


def test_every_option_reaches_the_loss() -> None:
    values = {
        "consistency_weight": 0.1,
        "intermediate_weight": 0.2,
        "blank_penalty": 0.3,
        "prior_weight": 0.4,
        "entropy_weight": 0.5,
        "label_smoothing": 0.6,
        "wildcard_penalty": 0.7,
    }
    tokenizer = CharTokenizer(["a", "b"])
    found = build.make_training_loss(LossConfig(**values), TextConfig(wildcard="*"), tokenizer)
    assert list(dataclasses.asdict(found.variants).values()) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0, 0.7]
    focal = build.make_training_loss(LossConfig(focal_gamma=2.0), TextConfig(), tokenizer).variants
    assert focal == Variants(focal_gamma=2.0)


# ------------------------------------------------------------------ training


def metrics(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


EVERYTHING = [
    *("loss=cr_ctc", "loss.intermediate_weight=0.3", "model.rnn_layers=2", "model.self_conditioning=true"),
    *("loss.prior_weight=0.3", "loss.blank_penalty=0.2", "loss.entropy_weight=0.05"),
    *("loss.label_smoothing=0.05", "text.wildcard='*'", "loss.wildcard_penalty=0.5"),
]


def test_parts_are_logged_and_dev_loss_is_plain_ctc(tiny_train_config: Compose, tmp_path: Path) -> None:
    config = tiny_train_config(
        tmp_path / "run", "augment=light", "trainer.precision=32", *EVERYTHING, "trainer.max_epochs=1"
    )
    assert train(config) == 0
    rows = metrics(tmp_path / "run")
    weights = {
        "ctc": 0.95 * 0.7,
        "intermediate": 0.95 * 0.3,
        "smoothing": 0.05,
        "consistency": 0.2,
        "entropy": -0.05,
    }
    steps = [row for row in rows if row["train/gradient_norm"]]
    assert steps
    for row in steps:
        total = sum(weight * float(row[f"train/loss_{name}"]) for name, weight in weights.items())
        assert float(row["train/loss"]) == pytest.approx(total, rel=1e-4)
    state = last_checkpoint(tmp_path / "run")["state_dict"]
    assert "training_loss.log_prior" in state
    recogniser = checkpoint.load_recogniser(tmp_path / "run", GreedyConfig(), torch.device("cpu"))
    assert recogniser.wildcard == "*"
    assert recogniser.acoustic_model.encoder.conditioning is not None


def test_two_views_in_one_pass_with_masks_of_their_own(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    validated: list[int] = []

    def step(module: CtcModule, batch: Any) -> Any:
        before = module.acoustic_model.encoder.register_forward_pre_hook(
            lambda encoder, arguments: seen.append(arguments[0].features)
        )
        result = original(module, batch)
        before.remove()
        if module.training:
            assert len(seen[-1]) == 2 * len(batch.utterance_ids)
            assert len(result.emissions.log_probs) == len(result.losses) == len(batch.utterance_ids)
        else:
            validated.append(len(seen.pop()) - len(batch.utterance_ids))
        return result

    original = CtcModule.shared_step
    monkeypatch.setattr(CtcModule, "shared_step", step)
    options = ["augment=standard", "augment.time_mask_seconds=0.1", "loss=cr_ctc", "trainer.max_epochs=1"]
    for name in ("one", "again"):
        assert train(tiny_train_config(tmp_path / name, *options)) == 0
    half = len(seen) // 2
    for first, second in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(first, second)  # the same seeds, the same views
    differs = [not torch.equal(*features.chunk(2)) for features in seen]
    assert sum(differs) > len(seen) / 2  # a mask may be drawn with no width
    assert set(validated) == {0}


def test_more_time_masks_with_consistency(tiny_train_config: Compose, tmp_path: Path) -> None:
    config = tiny_train_config(tmp_path, "augment=standard", "loss=cr_ctc")
    masks = build.masks_of_views(config.augment, config.loss)
    assert (masks.num_time_masks, masks.time_mask_share) == (5, 0.25)
    assert masks.num_mel_masks == config.augment.num_mel_masks
    plain = tiny_train_config(tmp_path, "augment=standard")
    assert build.masks_of_views(plain.augment, plain.loss) == plain.augment


def test_interrupted_and_resumed_is_bit_identical(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*RANDOM, *EVERYTHING, "trainer.max_epochs=2"]
    assert train(tiny_train_config(tmp_path / "whole", *options)) == 0
    with monkeypatch.context() as patched:
        interrupt_at(patched, 5, request)
        assert train(tiny_train_config(tmp_path / "run", *options)) == 130
    assert train(tiny_train_config(tmp_path / "new", *options, f"resume={tmp_path / 'run'}")) == 0
    expected, found = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "run")
    assert_identical(found["state_dict"], expected["state_dict"])


def test_a_skipped_step_leaves_the_priors_alone(
    tiny_train_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(loss: VariantLoss, *arguments: Any) -> Any:
        found = original(loss, *arguments)
        return found._replace(total=found.total * math.nan)

    original = VariantLoss.forward
    monkeypatch.setattr(VariantLoss, "forward", forward)
    options = ["loss=label_priors", "trainer.non_finite_loss=skip", "trainer.max_epochs=1"]
    assert train(tiny_train_config(tmp_path / "run", *options)) == 0
    prior = last_checkpoint(tmp_path / "run")["state_dict"]["training_loss.log_prior"]
    assert torch.allclose(prior.exp(), torch.full_like(prior, 1 / len(prior)))


LEARN = [
    *("data.max_batch_utterances=4", "model.rnn_size=32", "model.rnn_layers=2", "model.conv_channels=[8]"),
    *("model.dropout=0", "optimizer.learning_rate=1e-2", "trainer.max_epochs=150"),
    *("trainer.validate_every_epochs=150", "trainer.log_every_steps=50"),
]
MASKS = [
    "augment=light",
    "augment.time_mask_seconds=0.05",
    "augment.speed_factors=[1.0]",
    "augment.num_mel_masks=0",
]


@pytest.mark.parametrize(
    "options",
    [
        ["loss=cr_ctc", "loss.intermediate_weight=0.3", "model.self_conditioning=true", *MASKS],
        pytest.param(["loss=intermediate"], marks=pytest.mark.slow),
        pytest.param(["loss=label_priors"], marks=pytest.mark.slow),
        pytest.param(["loss.blank_penalty=0.5"], marks=pytest.mark.slow),
        pytest.param(["loss.entropy_weight=0.1"], marks=pytest.mark.slow),
        pytest.param(["loss.label_smoothing=0.05"], marks=pytest.mark.slow),
        pytest.param(["loss.focal_gamma=1"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_each_variant_learns(
    tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path, options: list[str]
) -> None:
    four = tiny_corpus.write(tmp_path / "four.jsonl", tiny_corpus.lines("train")[:4])
    data = [f"data.train={four}", f"data.dev={four}"]
    assert train(tiny_train_config(tmp_path / "run", *data, *LEARN, *options)) == 0
    assert read_report(tmp_path / "run" / "report.json").wer == 0


# ------------------------------------------------------------------ wildcard


def test_normalising_keeps_the_wildcard_as_a_word() -> None:
    assert normalise("He said*, twice.", wildcard="*") == "he said * twice"
    assert normalise("* * one ** two *", wildcard="*") == "* one * two *"
    assert normalise("* , *", wildcard="*") == ""
    assert normalise("a * b") == "a b"
    assert normalise("a # b!", keep_punctuation=True, wildcard="#") == "a # b!"


@given(st.text(alphabet="ab *'.,É", max_size=12))
def test_normalising_with_a_wildcard_twice_changes_nothing(text: str) -> None:
    once = normalise(text, wildcard="*")
    assert normalise(once, wildcard="*") == once


def test_a_wildcard_is_one_label_more_beside_known_spaces() -> None:
    characters = CharTokenizer.train(["ab c"])
    partial = PartialTokenizer(characters, "*")
    assert partial.vocab_size == characters.vocab_size == 5
    space, a, b, c = (characters.tokens.index(character) for character in " abc")
    assert partial.encode("ab * c") == [a, b, space, 5, space, c]
    assert partial.encode("* c") == [5, space, c]
    assert partial.encode("a *") == [a, space, 5]
    with pytest.raises(TextError, match="'x'"):
        partial.encode("ab * x")
    assert PartialTokenizer(CharTokenizer.train(["ab"]), "*").encode("a * b") == [1, 3, 2]  # knows no space
    assert partial.encode("a b") == characters.encode("a b")
    assert partial.unknown_characters("a * x") == {"x": 1}
    assert partial.fingerprint == characters.fingerprint
    pieces = SentencePieceTokenizer.train(["one two three", "two three four"], vocab_size=13)
    partial = PartialTokenizer(pieces, "*")
    assert partial.encode("one * four") == [*pieces.encode("one"), 13, *pieces.encode("four")]


def test_words_around_a_gap_are_learned(tiny_train_config: Compose, tiny_corpus: Any, tmp_path: Path) -> None:
    lines = tiny_corpus.lines("train")[:4]
    whole = tiny_corpus.write(tmp_path / "whole.jsonl", lines)
    texts = ["ab *", "* ba", "aa bb", "ca db"]
    partial = tiny_corpus.write(
        tmp_path / "partial.jsonl",
        [{**line, "text": text} for line, text in zip(lines, texts, strict=True)]
        + [{**lines[0], "id": "nothing", "text": "*"}],
    )
    data = [f"data.train={partial}", f"data.dev={whole}", "text.wildcard='*'"]
    assert train(tiny_train_config(tmp_path / "run", *data, *LEARN)) == 0
    report = read_report(tmp_path / "run" / "report.json")
    heard = [utterance.hypothesis for utterance in report.utterances]
    assert heard[0].startswith("ab")
    assert heard[1].endswith("ba")
    assert heard[2:] == ["aa bb", "ca db"]
    excluded = (tmp_path / "run" / "excluded.jsonl").read_text().splitlines()
    assert [(json.loads(line)["id"], json.loads(line)["reason"]) for line in excluded] == [
        ("nothing", "empty text")
    ]
    characters = last_checkpoint(tmp_path / "run")["recipe"]["tokenizer"]["characters"]
    assert characters == sorted("abcd ")


def test_gaps_in_dev_are_refused_and_in_evaluation_left_out(
    tiny_train_config: Compose, tiny_corpus: Any, tiny_run: Path, tmp_path: Path
) -> None:
    lines = tiny_corpus.lines("dev")
    lines[1]["text"] = "cb *"
    dev = tiny_corpus.write(tmp_path / "dev.jsonl", lines)
    with pytest.raises(ManifestError, match=r"1 transcripts of data\.dev=.*dev-1.*") as caught:
        train(tiny_train_config(tmp_path / "run", f"data.dev={dev}", "text.wildcard='*'"))
    assert "\n" not in str(caught.value)

    from asr.evaluation import evaluate_utterances
    from asr.manifest import read_manifest

    recogniser = checkpoint.load_recogniser(tiny_run, GreedyConfig(), torch.device("cpu"))
    report = evaluate_utterances(
        dataclasses.replace(recogniser, wildcard="*"),
        read_manifest(dev),
        max_batch_utterances=4,
        max_batch_seconds=60,
    )
    assert [excluded.id for excluded in report.excluded] == ["dev-1"]
    assert len(report.utterances) == len(lines) - 1
