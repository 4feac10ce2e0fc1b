import pytest
import torch
import torch.nn.functional as F

from steadyseg import layers
from steadyseg.layers import MANY_CLASSES, attention, classify


@pytest.mark.parametrize(("tokens", "keys"), [(12, 5), (1, 1), (30, 30)])
def test_half_precision_training_on_the_cpu_attends_by_plain_products(monkeypatch, tokens, keys):
    """The same attention and gradients as in float64, no farther off than scaled_dot_product_attention."""
    torch.manual_seed(0)
    shapes = ((2, 3, tokens, 8), (2, 3, keys, 8), (2, 3, keys, 8))
    inputs = [torch.randn(shape, dtype=torch.float64).to(torch.bfloat16) for shape in shapes]
    weight = torch.randn(2, 3, tokens, 8, dtype=torch.float64)

    def run(function, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        out = function(*leaves)
        out.backward(weight.to(dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves)]

    exact = run(F.scaled_dot_product_attention, torch.float64)
    theirs = run(F.scaled_dot_product_attention, torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", None)  # not used
        ours = run(attention, torch.bfloat16)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        scale = truth.abs().max()
        assert (mine - truth).abs().max() <= max(2 * (other - truth).abs().max(), 0.01 * scale)


def test_attention_is_the_library_s_where_that_is_faster(monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 6, 4).unbind()
    expected = F.scaled_dot_product_attention(query, key, value)
    assert torch.equal(attention(query, key, value), expected)
    assert torch.equal(attention(query.clone().requires_grad_(), key, value), expected)
    half = [tensor.to(torch.bfloat16) for tensor in (query, key, value)]
    assert torch.equal(attention(*half), F.scaled_dot_product_attention(*half))
    monkeypatch.setattr(layers, "LARGEST_SCORES", 71)  # of 1 x 2 x 6 x 6
    large = attention(half[0].clone().requires_grad_(), *half[1:])
    assert torch.equal(large, F.scaled_dot_product_attention(*half))


@pytest.mark.parametrize("classes", [MANY_CLASSES - 1, MANY_CLASSES])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_class_scores(classes: int, has_bias: bool, memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 8, 3, 5).to(memory_format=memory_format)
    weight, bias = torch.randn(classes, 8), torch.randn(classes) if has_bias else None
    with torch.no_grad():
        scores = classify(x, weight, bias)
    torch.testing.assert_close(scores, F.conv2d(x, weight[:, :, None, None], bias))
    assert scores.is_contiguous() == (classes == MANY_CLASSES)
    torch.testing.assert_close(classify(x, weight, bias), scores)  # with gradients
