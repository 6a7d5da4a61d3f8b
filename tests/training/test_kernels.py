"""Losses without logits are torch's with them: values, gradients, precisions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from depthup.errors import TrainingError
from depthup.training import kernels
from depthup.training.kernels import BACKENDS, choose_backend, require_backend, summed_loss, token_logps

PRESENT = [name for name, backend in BACKENDS.items() if backend.is_present("cpu")]
Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.CHUNK_TOKENS, "cpu", 16)  # 50 tokens: three whole chunks and a rest


def case(dtype: torch.dtype, bias: bool = True, num_tokens: int = 50) -> Case:
    """Hidden states [50, 12], weight [40, 12], labels [50], bias [40]."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, 12, generator=draw, dtype=dtype).requires_grad_()
    weight = torch.randn(40, 12, generator=draw, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 40, (num_tokens,), generator=draw)
    return hidden, weight, labels, torch.randn(40, generator=draw, dtype=dtype).requires_grad_() if bias else None


def gradients(loss: torch.Tensor, *inputs: torch.Tensor | None) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [tensor for tensor in inputs if tensor is not None]))


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*PRESENT, "token_logps"])
def test_loss_and_gradients_are_torch_s(name: str, dtype: torch.dtype, bias: bool, cap: float | None) -> None:
    hidden, weight, labels, offset = case(dtype, bias)
    oracle = F.cross_entropy(capped(F.linear(hidden, weight, offset), cap), labels, reduction="sum") * 0.5
    if name == "token_logps":
        loss = -token_logps(hidden, weight, labels, offset, cap=cap).sum() * 0.5
    elif cap is not None and not BACKENDS[name].caps:
        with pytest.raises(TrainingError, match="does not cap"):
            summed_loss(hidden, weight, labels, offset, cap=cap, backend=name)
        return
    else:
        loss = summed_loss(hidden, weight, labels, offset, cap=cap, backend=name) * 0.5
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, oracle)
    inputs = (hidden, weight, offset)
    torch.testing.assert_close(gradients(loss, *inputs), gradients(oracle, *inputs))


@pytest.mark.parametrize("cap", [None, 3.0])
def test_each_log_probability_has_its_own_gradient(cap: float | None) -> None:
    hidden, weight, labels, bias = case(torch.float64)
    assert bias is not None
    oracle = F.log_softmax(capped(F.linear(hidden, weight, bias), cap), dim=-1).gather(1, labels[:, None]).squeeze(1)
    found = token_logps(hidden, weight, labels, bias, cap=cap)
    torch.testing.assert_close(found, oracle)
    factors, inputs = torch.linspace(-1, 2, len(labels), dtype=torch.float64), (hidden, weight, bias)
    torch.testing.assert_close(
        gradients((found * factors).sum(), *inputs), gradients((oracle * factors).sum(), *inputs)
    )


@pytest.mark.parametrize("name", ["chunked", "token_logps"])
def test_bfloat16_is_as_good_as_full_logits_and_sums_are_float32(name: str) -> None:
    """Against float64, neither loss nor gradients are further off than torch's own bfloat16 ones."""
    narrow = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in case(torch.float64)]
    exact = [tensor.double() if tensor.is_floating_point() else tensor for tensor in narrow]
    results = []
    for inputs, ours in ((exact, False), (narrow, False), (narrow, True)):
        hidden, weight, labels, bias = (t.detach().requires_grad_(t.is_floating_point()) for t in inputs)
        if not ours:
            logits = F.linear(hidden, weight, bias)
            loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="sum")
        elif name == "chunked":
            loss = summed_loss(hidden, weight, labels, bias)
        else:
            loss = -token_logps(hidden, weight, labels, bias).sum()
        results.append([loss.detach(), *gradients(loss, hidden, weight, bias)])
    assert results[2][0].dtype == torch.float32
    for true, torch_s, found in zip(*results, strict=True):
        assert (found.double() - true).norm() <= 1.2 * (torch_s.double() - true).norm() + 1e-9


def test_under_autocast_matrices_are_narrow_and_the_weight_s_gradient_is_not() -> None:
    hidden, weight, labels, bias = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for loss in (summed_loss(hidden, weight, labels, bias), -token_logps(hidden, weight, labels, bias).sum()):
            oracle = F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(oracle.item(), rel=1e-3)
            found = gradients(loss, weight)[0]
            assert found.dtype == torch.float32
            assert (found != found.bfloat16()).any()


def test_what_needs_no_gradient_costs_none() -> None:
    hidden, weight, labels, bias = case(torch.float32)
    frozen = weight.detach()
    loss = summed_loss(hidden, frozen, labels)
    assert loss.grad_fn is not None
    torch.testing.assert_close(gradients(loss, hidden), gradients(summed_loss(hidden, weight, labels), hidden))
    with torch.inference_mode():
        assert summed_loss(hidden, weight, labels).item() == pytest.approx(loss.item())
    with torch.no_grad():
        assert not summed_loss(hidden, weight, labels, bias).requires_grad
        assert not token_logps(hidden, weight, labels, bias).requires_grad


def test_no_target_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    hidden, weight, labels, _ = case(torch.float32, num_tokens=0)
    for loss in (summed_loss(hidden, weight, labels), token_logps(hidden, weight, labels).sum()):
        assert loss.item() == 0
        assert not gradients(loss, weight)[0].any()


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, labels, _ = case(torch.float32)
    loss = summed_loss(hidden, weight, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="earlier backward pass"):
        loss.backward()


@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_two_ways_through_a_chunk_are_one(cap: float | None) -> None:
    """The one for a compiler is not compiled here."""
    hidden, weight, labels, bias = (t.detach() if t is not None else t for t in case(torch.float64))
    logits = F.linear(hidden, weight, bias)
    torch.testing.assert_close(
        kernels._loss_and_error(logits, labels, cap), kernels._loss_and_error_in_place(logits.clone(), labels, cap)
    )


def test_back_ends_are_known_and_present() -> None:
    assert all(choose_backend(device) in BACKENDS for device in ("cpu", "cuda", "mps"))
    with pytest.raises(TrainingError, match="did you mean 'chunked'"):
        require_backend("chunkd", "cpu")
    with pytest.raises(TrainingError, match="not present on cpu"):
        require_backend("liger", "cpu")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["chunked", "native", "liger", "token_logps"])
def test_on_a_gpu(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled chunk among them, with a rest of another size."""
    if name in BACKENDS and not BACKENDS[name].is_present("cuda"):
        pytest.skip(f"{name} is not here")
    monkeypatch.setitem(kernels.CHUNK_TOKENS, "cuda", 256)
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 64, generator=draw) for size in (600, 1000))
    hidden, weight = (tensor.to("cuda", dtype).requires_grad_() for tensor in (hidden, weight / 8))
    labels = torch.randint(0, 1000, (600,), generator=draw).cuda()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    oracle = F.cross_entropy(F.linear(*exact), labels, reduction="sum")
    if name == "token_logps":
        loss = -token_logps(hidden, weight, labels).sum()
    else:
        loss = summed_loss(hidden, weight, labels, backend=name)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert loss.item() == pytest.approx(oracle.item(), rel=tolerance)
    for found, true in zip(gradients(loss, hidden, weight), gradients(oracle, *exact), strict=True):
        assert (found.double() - true).norm() <= tolerance * true.norm()
