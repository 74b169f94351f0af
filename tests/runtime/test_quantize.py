"""Rounded models against formulas written out here and plain loops of transformers."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from ckptforensics.errors import NothingAnalysable, UsageError
from ckptforensics.findings import SignatureCache
from ckptforensics.runtime.experiments import quantize
from ckptforensics.runtime.experiments.quantize import ROWS, evaluate_quantization
from ckptforensics.runtime.model import start
from ckptforensics.runtime.quantization.arithmetic import (
    integer_product,
    rounded,
    rounded_in_groups,
    row_step,
    tensor_step,
)
from ckptforensics.runtime.quantization.calibration import calibrate, smooth
from ckptforensics.runtime.quantization.choices import Choices
from ckptforensics.runtime.quantization.errors import module_errors
from ckptforensics.runtime.quantization.linears import find_linears
from ckptforensics.runtime.quantization.schemes import Quantized, Scheme
from ckptforensics.runtime.texts import Text
from ckptforensics.runtime.weights import Placement
from tests.runtime.conftest import make_small

IDS = [7, 3, 50, 3, 21, 90, 4, 4, 61, 12, 33, 8, 9, 70, 2, 5, 6, 41, 80, 19, 1, 14, 15, 16]
WINDOW = 6
WINDOWS = [IDS[i : i + WINDOW] for i in range(0, len(IDS), WINDOW)]
# Two windows are evaluated, two calibrate.
TEXT = Text(token_ids=IDS, window=WINDOW, limit=12)
DENSE = ("llama", "gpt2", "opt", "neox", "phi", "gemma2", "granite", "olmo")


def step_of(x, dims=None):
    """smoothquant's: the largest |entry|, at least 1e-5, over 127."""
    largest = x.abs().max() if dims is None else x.abs().amax(dim=dims, keepdim=True)
    return largest.clamp(min=1e-5) / 127


def fake(x, dims=None):
    step = step_of(x, dims)
    return torch.round(x / step) * step


def linears_of(model):
    """Linear modules but the head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def by_hand(model, *, kept=(), token=False):
    """transformers' own model with rounded weights, and hooks that round what modules read."""
    model = copy.deepcopy(model)
    for name, module in linears_of(model).items():
        if name in kept:
            continue
        inputs = 0 if isinstance(module, Conv1D) else 1
        module.weight.data = fake(module.weight.data, inputs if token else None)
        module.register_forward_pre_hook(lambda _, args: (fake(args[0], -1 if token else None),))
    return model


def perplexity_of(model, windows=WINDOWS[:2]):
    losses = []
    for window in windows:
        ids = torch.tensor([window])
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    return math.exp(sum(losses) / len(losses))


def rows_of(folder, *names, **more):
    document = evaluate_quantization(folder, rows=names, text=TEXT, **more)
    return document, {row.row: row for row in document.rows}


@pytest.fixture(scope="module", params=DENSE)
def dense(request, tmp_path_factory):
    return make_small(tmp_path_factory.mktemp(request.param), request.param)


def test_steps_ties_and_floor():
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -3.5, 127.0]])
    assert tensor_step(x) == 1
    assert rounded(x, tensor_step(x)).tolist() == [[0, 2, 2, 0, -4, 127]]  # halves to even
    assert tensor_step(-2 * x) == 2
    small = torch.full((2, 3), 1e-7)
    assert tensor_step(small) == pytest.approx(1e-5 / 127)  # the floor is on the largest entry
    assert row_step(small).flatten().tolist() == pytest.approx([1e-5 / 127] * 2)
    x = torch.randn(4, 9)
    torch.testing.assert_close(rounded(x, tensor_step(x)), fake(x), rtol=0, atol=0)
    torch.testing.assert_close(rounded(x, row_step(x)), fake(x, -1), rtol=0, atol=0)


def test_groups_of_128_columns():
    torch.manual_seed(1)
    w = torch.randn(3, 300)
    expected = w.clone()
    for begin, end in ((0, 128), (128, 256), (256, 300)):
        for row in range(3):
            part = w[row, begin:end]
            step = part.abs().max().clamp(min=1e-5) / 7.5
            expected[row, begin:end] = torch.round(part / step).clamp(-8, 7) * step
    torch.testing.assert_close(rounded_in_groups(w), expected, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [False, True])
def test_integer_products_agree(channels):
    torch.manual_seed(2)
    x, w = torch.randn(32, 64), torch.randn(24, 64)
    steps = (row_step(x), row_step(w)) if channels else (tensor_step(x), tensor_step(w))
    made = integer_product(x, steps[0], w, steps[1])
    exact = (
        fake(x, -1 if channels else None).double() @ fake(w, -1 if channels else None).double().T
    )
    torch.testing.assert_close(made.double(), exact, rtol=1e-5, atol=1e-5)


def test_rows_are_what_a_plain_loop_measures(dense):
    """RTN, kept modules and per-token, of families with all kinds of linear modules."""
    before = start(dense.folder)
    windows = torch.tensor(WINDOWS)
    exact = before.forward(windows.tolist(), logits=True).logits
    names = ("none", "rtn", "rtn+planned", "rtn+all", "per-token")
    document, rows = rows_of(before, *names, layers=(2,))
    down = [linear.name for linear in find_linears(before) if linear.down]
    assert rows["rtn+planned"].kept == (down[1],)
    assert rows["rtn+all"].kept == tuple(down)
    model = dense.model
    oracle = {
        "none": model,
        "rtn": by_hand(model),
        "rtn+planned": by_hand(model, kept=down[1:2]),
        "rtn+all": by_hand(model, kept=down),
        "per-token": by_hand(model, token=True),
    }
    for name, model in oracle.items():
        assert rows[name].perplexity == pytest.approx(perplexity_of(model), rel=1e-4), name
    assert document.tokens == rows["rtn"].tokens == 2 * (WINDOW - 1)
    assert document.text.partial
    assert torch.equal(before.forward(windows.tolist(), logits=True).logits, exact)


def test_integer_rows_agree(llama):
    names = ("rtn", "per-token", "rtn+first-token")
    floats, whole = (rows_of(llama.folder, *names, integer=i)[1] for i in (False, True))
    for name in names:
        assert whole[name].perplexity == pytest.approx(floats[name].perplexity, rel=1e-4)


def test_first_token_apart_is_a_prefix_in_the_cache(llama):
    """Its keys and values come of the exact model, and the rest is rounded without it."""
    # In double precision no entry lies so near a tie that the order of a sum decides.
    _, rows = rows_of(llama.folder, "rtn+first-token", placement=Placement(dtype="float64"))
    model = copy.deepcopy(llama.model).double()
    quantized, losses = by_hand(model), []
    # Newer versions of transformers have another name for it.
    known = inspect.signature(llama.model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    for window in WINDOWS[:2]:
        ids = torch.tensor([window])
        with torch.inference_mode():
            first = model(input_ids=ids[:, :1], use_cache=True)
            rest = quantized(input_ids=ids[:, 1:], **{name: getattr(first, name)})
        logits = torch.cat([first.logits, rest.logits], dim=1)[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())
    expected = math.exp(sum(losses) / len(losses))
    assert rows["rtn+first-token"].perplexity == pytest.approx(expected, rel=1e-4)


def smoothed_by_hand(model, alpha):
    """smoothquant's smooth_lm for a llama: factors folded into the norms' weights."""
    model = copy.deepcopy(model)
    largest = {}

    def see(name):
        def hook(_, args):
            sizes = args[0].abs().flatten(0, 1).amax(dim=0)
            largest[name] = sizes.maximum(largest.get(name, sizes))

        return hook

    handles = [m.register_forward_pre_hook(see(n)) for n, m in linears_of(model).items()]
    for window in WINDOWS[2:]:
        with torch.inference_mode():
            model(input_ids=torch.tensor([window]), use_cache=False)
    for handle in handles:
        handle.remove()
    for i, block in enumerate(model.model.layers):
        attention, mlp = block.self_attn, block.mlp
        for norm, readers, name in (
            (
                block.input_layernorm,
                (attention.q_proj, attention.k_proj, attention.v_proj),
                f"model.layers.{i}.self_attn.q_proj",
            ),
            (
                block.post_attention_layernorm,
                (mlp.gate_proj, mlp.up_proj),
                f"model.layers.{i}.mlp.gate_proj",
            ),
        ):
            weights = torch.cat([r.weight.data.abs().amax(dim=0, keepdim=True) for r in readers])
            weights = weights.amax(dim=0).clamp(min=1e-5)
            factor = (largest[name].pow(alpha) / weights.pow(1 - alpha)).clamp(min=1e-5)
            norm.weight.data /= factor
            for reader in readers:
                reader.weight.data *= factor
    return model


def test_smoothquant(llama):
    document, rows = rows_of(
        llama.folder, "smoothquant", "smoothquant+all", alphas=(0.3, 0.6), layers=(1,)
    )
    assert document.calibration is not None
    assert (document.apart, document.calibration.windows) == (True, 2)
    swept = {
        row.alpha: perplexity_of(by_hand(smoothed_by_hand(llama.model, row.alpha)), WINDOWS[2:])
        for row in document.alphas
    }
    assert {a.alpha: a.perplexity for a in document.alphas} == pytest.approx(swept, rel=1e-3)
    best = min(swept, key=lambda alpha: swept[alpha])
    assert {row.alpha for row in document.rows} == {best}
    oracle = by_hand(smoothed_by_hand(llama.model, best))
    assert rows["smoothquant"].perplexity == pytest.approx(perplexity_of(oracle), rel=1e-3)


def test_smoothing_alone_changes_nothing(dense):
    runtime = start(dense.folder)
    linears = find_linears(runtime)
    seen = calibrate(runtime, linears, WINDOWS)
    if not seen.groups:
        document, rows = rows_of(runtime, "smoothquant")
        assert not rows
        assert "not applicable" in document.skipped[0].reason
        return
    smoothing = smooth(seen, 0.5)
    everything = [linear.name for linear in linears]
    exact = runtime.forward(WINDOWS, logits=True).logits
    with Quantized(Scheme(smoothing=smoothing), linears, everything).running():
        made = runtime.forward(WINDOWS, logits=True).logits
    torch.testing.assert_close(made, exact, rtol=1e-3, atol=1e-3)
    assert not any("down" in name for name in smoothing.factors)


def test_where_smoothing_does_not_apply(tmp_path):
    """Norms behind the branches are read by no linear module; the other rows are measured."""
    small = make_small(tmp_path, "olmo2")
    document, rows = rows_of(small.folder, "none", "rtn", "smoothquant", "smoothquant+all")
    assert set(rows) == {"none", "rtn"}
    assert [row.what for row in document.skipped] == ["smoothquant", "smoothquant+all"]
    assert all("not applicable" in row.reason for row in document.skipped)


def test_experts_are_refused(tmp_path):
    small = make_small(tmp_path, "mixtral")
    with pytest.raises(NothingAnalysable, match="layer 1 has experts"):
        evaluate_quantization(small.folder, rows=("rtn",), text=TEXT)


def test_choices(llama):
    """By calibration: the largest of largest over median; at random: as many, of each seed."""
    _, rows = rows_of(llama.folder, "rtn+calibrated", layers=(1, 3))
    ratios = {}
    for name, module in linears_of(llama.model).items():
        if "down" not in name:
            continue
        seen = []
        handle = module.register_forward_pre_hook(lambda _, a, seen=seen: seen.append(a[0].abs()))
        with torch.inference_mode():
            for window in WINDOWS[2:]:
                llama.model(input_ids=torch.tensor([window]), use_cache=False)
        handle.remove()
        medians = sorted(x.median().item() for x in seen)
        ratios[name] = max(x.max().item() for x in seen) / medians[len(medians) // 2]
    best = sorted(sorted(ratios, key=lambda n: -ratios[n])[:2])
    assert sorted(rows["rtn+calibrated"].kept) == best
    document, _ = rows_of(llama.folder, "rtn+random", layers=(1, 3))
    assert [row.seed for row in document.rows] == [0, 1, 2, 3, 4]
    assert all(len(row.kept) == 2 for row in document.rows)
    assert len({row.kept for row in document.rows}) > 1


def test_errors_of_modules(llama):
    """Median over tokens of the rounded output's error on the exact model's inputs."""
    document, rows = rows_of(llama.folder, "rtn", "rtn+planned", layers=(2,))
    del document
    inputs = {}
    model = llama.model
    handles = [
        m.register_forward_pre_hook(lambda _, a, n=n: inputs.setdefault(n, []).append(a[0][0]))
        for n, m in linears_of(model).items()
    ]
    for window in WINDOWS[:2]:
        with torch.inference_mode():
            model(input_ids=torch.tensor([window]), use_cache=False)
    for handle in handles:
        handle.remove()
    for found in rows["rtn"].module_error:
        module = linears_of(model)[found.module]
        errors = []
        for x in inputs[found.module]:
            exact = x @ module.weight.data.T
            made = fake(x) @ fake(module.weight.data).T
            errors.append((made - exact).norm(dim=1) / exact.norm(dim=1))
        first = torch.stack([e[0] for e in errors]).quantile(0.5).item()
        others = torch.cat([e[1:] for e in errors]).quantile(0.5).item()
        assert (found.initial, found.ordinary) == pytest.approx((first, others), rel=1e-3)
    kept = {e.module: e for e in rows["rtn+planned"].module_error}["model.layers.1.mlp.down_proj"]
    assert (kept.initial, kept.ordinary) == (0, 0)


def test_predicted_beside_measured(llama):
    document, _ = rows_of(llama.folder, "rtn")
    names = {p.module for p in document.predictions}
    assert {f"model.layers.{i}.mlp.down_proj" for i in range(3)} <= names


def test_super_weights_are_held(llama):
    runtime = start(llama.folder)
    linears = find_linears(runtime)
    name = "model.layers.1.mlp.down_proj"
    quantized = Quantized(Scheme("group", None, held={name: [(3, 5)]}), linears)
    weight = llama.model.model.layers[1].mlp.down_proj.weight.detach()
    without = weight.clone()
    without[3, 5] = 0
    expected = rounded_in_groups(without)
    expected[3, 5] = weight[3, 5]
    torch.testing.assert_close(quantized.matrices[name], expected, rtol=0, atol=0)
    assert Choices(runtime.checkpoint, linears, (2,), None).planned == (name,)
    assert module_errors(runtime, quantized, WINDOWS[:1])[name][1] > 0


def test_bytes_and_shares(llama):
    _, rows = rows_of(llama.folder, "none", "rtn", "rtn+all", "per-token", "w4")
    linears = linears_of(llama.model)
    count = sum(p.numel() for p in llama.model.parameters())
    inside = sum(m.weight.numel() for m in linears.values())
    down = sum(m.weight.numel() for n, m in linears.items() if "down" in n)
    channels = sum(m.weight.shape[0] for m in linears.values())
    assert rows["none"].bytes == 2 * count
    assert rows["rtn"].bytes == 2 * (count - inside) + inside + 2 * len(linears)
    assert rows["rtn+all"].bytes == rows["rtn"].bytes + down - 2 * 3
    assert rows["rtn+all"].kept_share == pytest.approx(down / inside)
    assert rows["per-token"].bytes == 2 * (count - inside) + inside + 2 * channels
    assert rows["w4"].bytes == 2 * (count - inside) + inside // 2 + 2 * channels


def test_a_killed_run_goes_on(llama, tmp_path, monkeypatch):
    names = ("none", "rtn", "w4")
    whole, _ = rows_of(llama.folder, *names)
    plain, calls = quantize.perplexity, []

    def killed(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*args, **more)

    cache = SignatureCache(tmp_path / "cache")
    monkeypatch.setattr(quantize, "perplexity", killed)
    with pytest.raises(KeyboardInterrupt):
        rows_of(llama.folder, *names, cache=cache)
    (file,) = (tmp_path / "cache").iterdir()
    del calls[:]
    monkeypatch.setattr(quantize, "perplexity", lambda *a, **m: calls.append(1) or plain(*a, **m))
    again, _ = rows_of(llama.folder, *names, cache=cache)
    assert len(calls) == 1
    assert again == whole
    assert not file.exists()
    rows_of(llama.folder, "none", cache=cache)
    file.write_bytes(b"damaged")
    del calls[:]
    rows_of(llama.folder, *names, cache=cache)
    assert len(calls) == 3


def test_what_is_not_there(llama):
    with pytest.raises(UsageError, match="no row is called 'x'"):
        evaluate_quantization(llama.folder, rows=("x",), text=TEXT)
    with pytest.raises(UsageError, match="between 0 and 1"):
        evaluate_quantization(llama.folder, alphas=(2.0,), text=TEXT)
    with pytest.raises(UsageError, match="layers 1 to 3"):
        evaluate_quantization(llama.folder, layers=(4,), text=TEXT)


def test_every_row_has_its_place(llama):
    """All rows of a small model: measured, or skipped with a reason."""
    document = evaluate_quantization(llama.folder, text=TEXT)
    skipped = {row.what for row in document.skipped}
    assert {row.row for row in document.rows} | skipped == set(ROWS)
    assert all(row.reason for row in document.skipped)
