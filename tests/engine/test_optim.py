import pytest
import tiny
import torch

from steadyseg.engine.optim import build_optimizer, poly, set_rate
from steadyseg.models import method


@pytest.mark.parametrize("step", [0, 1, 749, 1499, 1500, 80_000, 159_999])
def test_poly_is_the_published_formula(step):
    expected = (1 - step / 160_000) ** 0.9
    if step < 1500:
        expected *= 1 - (1 - step / 1500) * (1 - 1e-6)
    assert poly(step, iterations=160_000, warmup=1500, power=0.9) == pytest.approx(expected, rel=1e-12)


def test_poly_without_warmup_starts_at_the_peak():
    assert poly(0, iterations=10, warmup=0, power=1.0) == 1.0


@pytest.mark.parametrize("step", [0, 749, 1500, 40_000, 79_999])
def test_decay_after_the_warmup_down_to_a_least_rate(step):
    """Peak b, least rate m: b times the warm-up, then (b - m) * (1 - (s - w) / (n - w)) ** p + m."""
    peak, least = 0.01, 1e-4
    if step < 1500:
        expected = peak * ((1 - 1e-6) * step / 1500 + 1e-6)
    else:
        expected = (peak - least) * (1 - (step - 1500) / (80_000 - 1500)) ** 0.9 + least
    share = poly(step, iterations=80_000, warmup=1500, power=0.9, least=least / peak, after_warmup=True)
    assert peak * share == pytest.approx(expected, rel=1e-12)


def test_sgd_with_equal_rates_and_decay_everywhere():
    config = tiny.experiment(optimizer="sgd", momentum=0.8, lr=0.1, head_lr_factor=1.0, decay_norms=True).train
    optimizer = build_optimizer(tiny.Tiny(tiny.Config(), 3), config)
    assert isinstance(optimizer, torch.optim.SGD)
    settings = {(group["lr"], group["momentum"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {(0.1, 0.8, config.weight_decay)}


def test_groups_of_a_real_model():
    segformer = method("segformer")
    model = segformer(segformer.Config(), 3)
    optimizer = build_optimizer(model, tiny.experiment(lr=1e-4, weight_decay=0.02).train)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "backbone": (1e-4, 0.02),
        "backbone norms": (1e-4, 0.0),
        "head": (pytest.approx(1e-3), 0.02),
        "head norms": (pytest.approx(1e-3), 0.0),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert any(p is model.backbone.block1[0].attn.norm.weight for p in groups["backbone norms"]["params"])


def test_rate_depends_on_the_step_alone():
    config = tiny.experiment(iterations=10, warmup=4, lr=0.5).train
    optimizer = build_optimizer(tiny.Tiny(tiny.Config(), 3), config)
    for step in (7, 3, 7):
        rate = set_rate(optimizer, step, config, 10)
    assert rate == pytest.approx(0.5 * 0.3)
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {0.15, 1.5}
    assert isinstance(optimizer, torch.optim.AdamW)
