"""Schedules against torch's own and hand arithmetic; which weights decay."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR

from asr.config import (
    AdamConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    NoamConfig,
    OneCycleConfig,
    OptimizerConfig,
    ScheduleConfig,
    SgdConfig,
)
from asr.errors import ConfigError
from asr.models.bilstm import BiLstmEncoder
from asr.optim import half_cosine, make_optimizer, make_schedule, schedule_factor

PEAK = 0.01


def fresh_optimizer(learning_rate: float = PEAK) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate)


def rates(schedule: LRScheduler, num_steps: int) -> list[float]:
    """The learning rate that each step is done with."""
    found = []
    for _ in range(num_steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def our_rates(config: ScheduleConfig, num_steps: int) -> list[float]:
    return rates(make_schedule(config, fresh_optimizer(), num_steps), num_steps)


@pytest.mark.parametrize("num_steps", [10, 97, 1000])
@pytest.mark.parametrize("warmup_share", [0.2, 0.3, 0.55])
def test_one_cycle_equals_torch(num_steps: int, warmup_share: float) -> None:
    config = OneCycleConfig(warmup_share=warmup_share, initial_divisor=20.0, final_divisor=100.0)
    theirs = OneCycleLR(
        fresh_optimizer(),
        max_lr=PEAK,
        total_steps=num_steps,
        pct_start=warmup_share,
        div_factor=20.0,
        final_div_factor=100.0,
        cycle_momentum=False,
    )
    expected = rates(theirs, num_steps - 1)  # torch refuses to go beyond the last step
    expected.append(theirs.optimizer.param_groups[0]["lr"])
    assert our_rates(config, num_steps) == pytest.approx(expected)


@pytest.mark.parametrize("num_steps", [40, 333])
@pytest.mark.parametrize("warmup", [1, 5, 20])
def test_cosine_equals_torch_after_a_linear_warm_up(num_steps: int, warmup: int) -> None:
    config = CosineConfig(warmup_share=warmup / num_steps, final_share=0.05)
    optimizer = fresh_optimizer()
    cosine = {"T_max": num_steps - warmup, "eta_min": 0.05 * PEAK}
    if warmup == 1:
        theirs: LRScheduler = CosineAnnealingLR(optimizer, **cosine)
    else:
        rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        theirs = SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, **cosine)], [warmup - 1])
    assert our_rates(config, num_steps) == pytest.approx(rates(theirs, num_steps), rel=1e-6)


def test_cosine_without_warm_up_starts_at_the_peak_and_ends_at_the_final_share() -> None:
    found = our_rates(CosineConfig(warmup_share=0.0, final_share=0.1), 11)
    assert found[0] == PEAK
    assert found[1] < PEAK
    assert found[5] == pytest.approx(PEAK * 0.55)
    assert found[-1] == pytest.approx(PEAK * 0.1)


def test_noam_by_hand() -> None:
    # Vaswani et al. 2017: rate ∝ min(n^-1/2, n * warmup^-3/2), here scaled to 1 at n = warmup.
    config = NoamConfig(warmup_steps=100)
    expected = [PEAK * min(n**-0.5, n * 100**-1.5) * 100**0.5 for n in range(1, 501)]
    found = our_rates(config, 500)
    assert found == pytest.approx(expected)
    assert found[99] == pytest.approx(PEAK)
    assert found[399] == pytest.approx(PEAK / 2)


def test_constant_by_hand() -> None:
    assert our_rates(ConstantConfig(), 5) == [PEAK] * 5
    found = our_rates(ConstantConfig(warmup_share=0.4), 10)
    assert found == pytest.approx([PEAK * share for share in (0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1)])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "config",
    [OneCycleConfig(), CosineConfig(), CosineConfig(warmup_share=0.9), NoamConfig(), ConstantConfig()],
)
def test_the_shortest_trainings_have_sane_rates(config: ScheduleConfig, num_steps: int) -> None:
    factor = schedule_factor(config, num_steps)
    shares = [factor(step) for step in range(num_steps + 5)]
    assert all(0 < share <= 1 for share in shares)


def test_the_last_rate_is_kept() -> None:
    for config in (OneCycleConfig(), CosineConfig(), ConstantConfig(warmup_share=0.2)):
        factor = schedule_factor(config, 20)
        assert factor(19) == pytest.approx(factor(20)) == pytest.approx(factor(500))


def test_half_cosine() -> None:
    assert [half_cosine(2.0, 4.0, progress) for progress in (-1, 0, 0.5, 1, 7)] == pytest.approx(
        [2, 2, 3, 4, 4]
    )


def test_a_resumed_schedule_goes_on_where_it_stopped() -> None:
    config, whole = OneCycleConfig(), our_rates(OneCycleConfig(), 50)
    before = make_schedule(config, fresh_optimizer(), 50)
    assert rates(before, 20) == whole[:20]
    optimizer = fresh_optimizer()
    after = make_schedule(config, optimizer, 50)
    optimizer.load_state_dict(before.optimizer.state_dict())
    after.load_state_dict(before.state_dict())
    assert rates(after, 30) == whole[20:]


# ------------------------------------------------------------------ optimizers


def model() -> BiLstmEncoder:
    return BiLstmEncoder(
        num_bins=8,
        vocab_size=5,
        conv_channels=[2],
        conv_kernels=[[3, 3]],
        conv_strides=[[2, 2]],
        rnn_size=4,
        rnn_layers=1,
        rnn_norm="layer",
        dropout=0.0,
    )


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (AdamWConfig(weight_decay=0.1), torch.optim.AdamW),
        (AdamConfig(weight_decay=0.1), torch.optim.Adam),
        (SgdConfig(weight_decay=0.1), torch.optim.SGD),
    ],
)
def test_weight_decay_is_for_matrices_and_kernels_alone(config: OptimizerConfig, kind: type) -> None:
    network = model()
    network.output.bias.requires_grad_(False)
    optimizer = make_optimizer(config, network)
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {
        name: 0.0 if "bias" in name or "norm" in name else 0.1
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    assert {name: decay[id(p)] for name, p in network.named_parameters() if p.requires_grad} == expected
    assert len(decay) == len(expected)  # frozen parameters are left out
    assert set(expected.values()) == {0.0, 0.1}


def test_the_options_reach_the_optimizer() -> None:
    adamw = make_optimizer(AdamWConfig(learning_rate=0.3, betas=[0.8, 0.9], epsilon=1e-3), model())
    assert {adamw.defaults[name] for name in ("lr", "eps")} == {0.3, 1e-3}
    assert adamw.defaults["betas"] == (0.8, 0.9)
    sgd = make_optimizer(SgdConfig(learning_rate=0.2, momentum=0.7, nesterov=False), model())
    assert [sgd.defaults[name] for name in ("lr", "momentum", "nesterov")] == [0.2, 0.7, False]


def test_a_kind_without_an_implementation_is_named() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.kind=lion"):
        make_optimizer(OptimizerConfig(kind="lion"), model())
    with pytest.raises(ConfigError, match=r"schedule\.kind=step"):
        schedule_factor(ScheduleConfig(kind="step"), 10)
