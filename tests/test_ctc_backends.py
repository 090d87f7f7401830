"""Every backend against brute force, finite differences and each other, on inputs where kernels break."""

import ctypes
import itertools
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc import ctc_loss, fused_cpu, min_frames

BACKENDS = ["native", "fused", "reference"]
ROOT = Path(__file__).parents[1]


def enumerated_loss(log_probs, target, blank):
    """Sum over all paths that collapse to the target; ``log_probs`` (frames, vocab)."""
    frames, vocab = log_probs.shape
    total = 0.0
    for path in itertools.product(range(vocab), repeat=frames):
        merged = [label for label, _ in itertools.groupby(path)]
        if [label for label in merged if label != blank] == target:
            total += math.exp(sum(log_probs[t, label].item() for t, label in enumerate(path)))
    return -math.log(total) if total else math.inf


def per_utterance(logits, targets, lengths, backend, **options):
    """Losses from logits (batch, frames, vocab)."""
    options = {"reduction": "none", "inputs": "logits", "layout": "NTC", "check": False} | options
    return ctc_loss(logits, targets, *lengths, backend=backend, **options)


def loss_and_gradient(logits, targets, lengths, backend, **options):
    logits = logits.detach().requires_grad_()
    losses = per_utterance(logits, targets, lengths, backend, **options)
    losses[losses.isfinite()].sum().backward()
    return losses.detach(), logits.grad


def random_batch(batch, frames, vocab, labels, scale=2.0, seed=0, blank=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, vocab, generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(0, vocab - 1, (batch, labels), generator=generator)
    targets += targets >= blank
    input_lengths = torch.randint(max(1, frames * 4 // 5), frames + 1, (batch,), generator=generator)
    target_lengths = torch.randint(labels * 3 // 4, labels + 1, (batch,), generator=generator)
    return logits, targets, (input_lengths, target_lengths)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=40)
@given(
    target=st.lists(st.integers(0, 1), max_size=3),
    frames=st.integers(1, 5),
    blank=st.integers(0, 2),
    scale=st.sampled_from([0.5, 4.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_enumerating_all_paths_gives_the_same_loss(backend, target, frames, blank, scale, seed):
    target = [label + (label >= blank) for label in target]
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, frames, 3, generator=generator, dtype=torch.float64) * scale
    expected = enumerated_loss(logits[0].log_softmax(-1), target, blank)
    labels = torch.tensor([target], dtype=torch.long).reshape(1, -1)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        actual = per_utterance(logits.to(dtype), labels, ([frames], [len(target)]), backend, blank=blank)
        assert actual.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["TNC", "NTC"])
def test_gradient_is_the_finite_difference(backend, layout):
    logits, targets, lengths = random_batch(3, 7, 4, 3)
    targets[0] = torch.tensor([2, 2, 1])
    lengths[1][2] = 0
    x = (logits if layout == "NTC" else logits.transpose(0, 1).contiguous()).requires_grad_()
    for reduction in ("none", "mean", "sum"):
        options = {"layout": layout, "reduction": reduction}
        assert torch.autograd.gradcheck(
            lambda x, o=options: per_utterance(x, targets, lengths, backend, **o), [x]
        )


@pytest.mark.parametrize("inputs", ["logits", "log_probs"])
def test_reference_has_second_derivatives(inputs):
    logits, targets, lengths = random_batch(2, 4, 3, 2)

    def loss(x):
        x = x if inputs == "logits" else x.log_softmax(-1)
        return per_utterance(x, targets, lengths, "reference", inputs=inputs)

    assert torch.autograd.gradgradcheck(loss, [logits.requires_grad_()])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), blank=st.integers(0, 5))
def test_padding_batch_order_and_vocabulary_order_do_not_matter(backend, seed, blank):
    logits, targets, lengths = random_batch(3, 9, 6, 4, seed=seed, blank=blank)
    losses, gradient = loss_and_gradient(logits, targets, lengths, backend, blank=blank)
    close = {"rtol": 1e-10, "atol": 1e-10}

    padded = torch.nn.functional.pad(logits, (0, 0, 0, 5), value=7.0)
    for utterance, frames in enumerate(lengths[0]):
        padded[utterance, frames:] = 1e4 * torch.randn(14 - int(frames), 6)
    more_labels = torch.nn.functional.pad(targets, (0, 3), value=blank)
    other_losses, other_gradient = loss_and_gradient(padded, more_labels, lengths, backend, blank=blank)
    torch.testing.assert_close(other_losses, losses, **close)
    torch.testing.assert_close(other_gradient[:, :9], gradient, **close)
    assert not other_gradient[:, 9:].any()

    order = torch.tensor([2, 0, 1])
    reordered = loss_and_gradient(
        logits[order], targets[order], [n[order] for n in lengths], backend, blank=blank
    )
    torch.testing.assert_close(reordered, (losses[order], gradient[order]), **close)

    renaming = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    renamed = torch.empty_like(logits)
    renamed[..., renaming] = logits
    renamed_losses, renamed_gradient = loss_and_gradient(
        renamed, renaming[targets], lengths, backend, blank=int(renaming[blank])
    )
    torch.testing.assert_close(renamed_losses, losses, **close)
    torch.testing.assert_close(renamed_gradient[..., renaming], gradient, **close)


def hard_batches():
    """Inputs on which shortcuts fail: each is (logits, targets, lengths)."""
    logits, targets, lengths = random_batch(4, 300, 29, 70, scale=1.0)
    yield "random", logits, targets, lengths
    yield "collapsed to blank", logits + 25.0 * (torch.arange(29) == 0), targets, lengths
    peaky = logits.clone()
    peaky[..., 0] += 10
    for utterance in range(4):
        position = torch.arange(70) * 4 + 2
        peaky[utterance, position, targets[utterance]] += 25
    yield "sure of a path", peaky, targets, (torch.full((4,), 300), torch.full((4,), 70))
    yield "sure of another path", peaky.flip(1), targets, (torch.full((4,), 300), torch.full((4,), 70))
    yield "as long as possible", *random_batch(2, 1500, 12, 400, seed=2)
    tight = torch.arange(60).remainder(5)[None].expand(3, -1) + 1
    yield "no frame to spare", random_batch(3, 60, 7, 60)[0], tight, ([60, 60, 60], [60, 59, 58])
    yield "wide vocabulary", *random_batch(2, 40, 3001, 10, scale=3.0)
    yield "scores up to 10 000", *random_batch(3, 50, 11, 12, scale=3e3)
    forbidden = random_batch(2, 40, 30, 8)
    forbidden[0][..., 20:] = -math.inf
    forbidden[1].clamp_(max=19)
    yield "labels ruled out", *forbidden
    yield "one label", *random_batch(2, 12, 2, 4)
    yield (
        "nothing to say",
        random_batch(2, 12, 5, 1)[0],
        torch.ones(2, 1, dtype=torch.long),
        ([12, 7], [0, 0]),
    )


@pytest.mark.parametrize("batch", hard_batches(), ids=lambda batch: batch[0])
def test_fused_float32_is_close_to_float64_where_shortcuts_fail(batch):
    _, logits, targets, lengths = batch
    logits = logits.float().double()
    # PyTorch's float64 is quick, but nan where a label is ruled out.
    oracle = "native" if logits.isfinite().all() else "reference"
    exact_losses, exact = loss_and_gradient(logits, targets, lengths, oracle)
    for inputs in ("logits", "log_probs"):
        x = logits if inputs == "logits" else logits.log_softmax(-1)
        losses, gradient = loss_and_gradient(x.float(), targets, lengths, "fused", inputs=inputs)
        torch.testing.assert_close(losses.double(), exact_losses, rtol=2e-6, atol=1e-5)
        assert (gradient - exact).abs().max() < (1e-4 if inputs == "log_probs" else 2e-5)
        losses, gradient = loss_and_gradient(x, targets, lengths, "fused", inputs=inputs)
        torch.testing.assert_close(losses, exact_losses, rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-8)


def test_fused_gradients_are_at_least_five_times_as_exact_as_native_ones():
    logits, targets, lengths = random_batch(4, 400, 29, 90)
    logits = logits.float()
    _, exact = loss_and_gradient(logits.double(), targets, lengths, "native")
    errors = {
        backend: (loss_and_gradient(logits, targets, lengths, backend)[1] - exact).abs().max().item()
        for backend in ("native", "fused")
    }
    assert errors["fused"] <= errors["native"] / 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_input_same_bits_whatever_the_number_of_threads(backend):
    logits, targets, lengths = random_batch(9, 200, 29, 40)
    threads = torch.get_num_threads()
    try:
        outcomes = []
        for count in (1, 3, 3, 2):
            torch.set_num_threads(count)
            outcomes.append(loss_and_gradient(logits.float(), targets, lengths, backend))
    finally:
        torch.set_num_threads(threads)
    for losses, gradient in outcomes[1:]:
        assert torch.equal(losses, outcomes[0][0])
        assert torch.equal(gradient, outcomes[0][1])


def test_losses_alone_are_the_losses_with_a_gradient():
    logits, targets, lengths = random_batch(3, 120, 17, 30)
    with torch.no_grad():
        alone = per_utterance(logits.float(), targets, lengths, "fused")
    torch.testing.assert_close(
        alone, loss_and_gradient(logits.float(), targets, lengths, "fused")[0], rtol=0, atol=0
    )


def test_gradient_memory_is_reused_only_when_nobody_holds_it():
    logits, targets, lengths = random_batch(4, 300, 300, 20)
    logits = logits.float()
    held = loss_and_gradient(logits, targets, lengths, "fused")[1]
    copy = held.clone()
    loss_and_gradient(2 * logits, targets, lengths, "fused")
    assert torch.equal(held, copy)
    view = held[1]
    del held
    loss_and_gradient(3 * logits, targets, lengths, "fused")
    assert torch.equal(view, copy[1])
    del view
    free = loss_and_gradient(logits, targets, lengths, "fused")[1].data_ptr()
    again = loss_and_gradient(logits, targets, lengths, "fused")[1].data_ptr()
    assert free == again


def test_works_in_a_forked_process_and_in_many_threads():
    logits, targets, lengths = random_batch(8, 200, 29, 40)
    expected = per_utterance(logits.float(), targets, lengths, "fused")
    code = f"""
        import os, sys, threading, torch
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        from asr.ctc import fused_cpu
        from test_ctc_backends import per_utterance, random_batch
        torch.set_num_threads(2)
        logits, targets, lengths = random_batch(8, 200, 29, 40)
        logits = logits.float()
        run = lambda: per_utterance(logits, targets, lengths, "fused").sum().item()
        run()
        assert abs(run() - {expected.sum().item()}) < 1e-2
        child = os.fork()
        if child == 0:
            # Threads do not survive a fork (nor does torch's OpenMP, so nothing of torch runs here).
            os._exit(fused_cpu._openmp() or fused_cpu._threads().submit(lambda: 7).result(timeout=60))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        found = []
        threads = [threading.Thread(target=lambda: found.append(run())) for _ in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(set(found)) == 1 and len(found) == 6, found
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_without_a_writable_folder_kernels_are_compiled_without_a_cache():
    code = "import logging; logging.basicConfig(); import asr.ctc.cpu_kernels as kernels; kernels.solve"
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    environment.pop("NUMBA_CACHE_DIR", None)
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "set NUMBA_CACHE_DIR" in run.stderr


def gpu_batches():
    yield "log_probs", 6, *random_batch(2, 9, 7, 3, blank=6)
    collapsed, targets, lengths = random_batch(1, 18, 5, 6, seed=3)
    yield "logits", 0, collapsed + 40.0 * (torch.arange(5) == 0), targets, lengths
    yield "logits", 1, *random_batch(2, 9, 4, 3, blank=1, scale=3e3)
    yield "logits", 0, random_batch(2, 3, 1500, 1)[0], torch.ones(2, 1, dtype=torch.long), ([3, 2], [0, 1])
    repeats, _, _ = random_batch(2, 9, 4, 5)
    yield "logits", 0, repeats, torch.tensor([[1, 1, 2, 1, 1], [3] * 5]), ([9, 8], [5, 5])


def solve_with_gpu_kernels(device):
    """What the Triton kernels make of ``gpu_batches``: on a GPU, or line by line on the CPU where Triton interprets."""
    from asr.ctc import fused_gpu
    from asr.ctc.contract import prepare

    answers = {}
    for number, (inputs, blank, logits, targets, lengths) in enumerate(gpu_batches()):
        x = (logits if inputs == "logits" else logits.log_softmax(-1)).float().to(device).requires_grad_()
        problem = prepare(x, targets.to(device), *lengths, blank=blank, layout="NTC")
        found = fused_gpu.per_utterance(problem, inputs == "log_probs", checks_rows=True)
        weights = torch.arange(1.0, len(x) + 1, device=device)
        torch.where(found.losses.isinf(), 0, found.losses).mul(weights).sum().backward()
        with torch.no_grad():
            alone = fused_gpu.per_utterance(problem, inputs == "log_probs", checks_rows=False)
        assert torch.equal(alone.losses, found.losses)
        answers[f"{number}.losses"] = found.losses.detach().cpu().numpy()
        answers[f"{number}.gradient"] = x.grad.cpu().numpy()
        answers[f"{number}.row_log_totals"] = found.row_log_totals.cpu().numpy()
    return answers


def test_gpu_kernels_in_triton_s_interpreter(tmp_path):
    pytest.importorskip("triton", reason="Triton comes with torch on Linux only")
    code = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        import numpy
        from test_ctc_backends import solve_with_gpu_kernels
        numpy.savez(sys.argv[1], **solve_with_gpu_kernels("cpu"))
    """
    output = tmp_path / "answers.npz"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(output)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=True,
        timeout=300,
    )
    check_against_the_reference(np.load(output))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_kernels_on_a_gpu():
    check_against_the_reference(solve_with_gpu_kernels("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("vocab_size", "num_labels"), [(29, 60), (5000, 30), (29, 700)])
def test_gpu_losses_and_gradients_of_real_sizes(vocab_size, num_labels):
    """More labels than one block holds, more tokens than one block, utterances of unlike lengths."""
    logits, targets, lengths = random_batch(4, 1500, vocab_size, num_labels, scale=3.0)
    losses, gradient = loss_and_gradient(logits.float().double(), targets, lengths, "reference")
    on_gpu = logits.float().cuda()
    found, found_gradient = loss_and_gradient(on_gpu, targets.cuda(), lengths, "fused")
    torch.testing.assert_close(found.cpu().double(), losses, rtol=2e-6, atol=1e-3)
    torch.testing.assert_close(found_gradient.cpu().double(), gradient, rtol=0, atol=2e-5)


def check_against_the_reference(answers):
    for number, (inputs, blank, logits, targets, lengths) in enumerate(gpu_batches()):
        x = (logits if inputs == "logits" else logits.log_softmax(-1)).float().double()
        losses, gradient = loss_and_gradient(x, targets, lengths, "reference", blank=blank, inputs=inputs)
        np.testing.assert_allclose(answers[f"{number}.losses"], losses, rtol=2e-6, atol=1e-5)
        weights = torch.arange(1.0, len(x) + 1)[:, None, None]
        np.testing.assert_allclose(answers[f"{number}.gradient"], gradient * weights, rtol=0, atol=1e-5)
        frames = torch.as_tensor(lengths[0])
        for utterance, totals in enumerate(answers[f"{number}.row_log_totals"]):
            valid = x[utterance, : frames[utterance]].logsumexp(-1)
            np.testing.assert_allclose(totals[: frames[utterance]], valid, rtol=1e-6, atol=1e-5)
    assert np.isinf(answers["4.losses"][1])
    assert min_frames(torch.tensor([[3] * 5]), torch.tensor([5])).item() == 9


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_gpu_kernels_compile_for_a_gpu(capability):
    """Translation to machine code needs no GPU; running it does."""
    triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux only")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from asr.ctc import fused_gpu

    constants = {"VOCAB": 5000, "BLOCK": 1024, "STATES": 256, "KEEP": True}
    types = {
        "*fp32": "scores maxima log_sums mantissas weights gradient occupancies",
        "*fp64": "losses",
        "*i32": "labels skips exponents first following rounds",
        "*i64": "frames counts offsets totals",
        "i64": "utterance_step frame_step g_utterance_step g_frame_step",
        "i32": "num_frames width blank",
    }
    type_of = {name: kind for kind, names in types.items() for name in names.split()}
    for name in (
        "_normalise",
        "_follow_forward",
        "_follow_backward",
        "_write_softmax",
        "_subtract_occupancies",
    ):
        kernel = getattr(fused_gpu, name)
        signature = {argument: type_of.get(argument, "constexpr") for argument in kernel.arg_names}
        fixed = {
            (kernel.arg_names.index(key),): value
            for key, value in constants.items()
            if key in kernel.arg_names
        }
        source = ASTSource(kernel, signature=signature, constexprs=fixed)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]


def test_gpu_kernels_are_not_compiled_for_every_size_of_a_batch():
    """Each variant takes a second: one for each power of two of states, whatever divides frames and strides."""
    pytest.importorskip("triton", reason="Triton comes with torch on Linux only")
    from asr.ctc import fused_gpu

    for name in (
        "_normalise",
        "_follow_forward",
        "_follow_backward",
        "_write_softmax",
        "_subtract_occupancies",
    ):
        parameters = getattr(fused_gpu, name).params
        varying = {one.name for one in parameters if one.name.endswith("_step")} | {"num_frames", "width"}
        specialised = {
            one.name for one in parameters if not (one.do_not_specialize or one.is_constexpr)
        } & varying
        assert not specialised, name
    assert {fused_gpu._states_block(width) for width in range(1, 65)} == {32, 64}


def test_extreme_lengths_without_frames():
    """No frames: only the empty target has a path."""
    for backend in BACKENDS:
        losses, gradient = loss_and_gradient(
            torch.randn(2, 3, 4), torch.tensor([[1], [1]]), ([0, 0], [0, 1]), backend
        )
        assert losses.tolist() == [0, math.inf]
        assert not gradient.any()


@pytest.fixture
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_openmp_and_the_thread_pool_find_the_same(monkeypatch, three_threads):
    logits, targets, lengths = random_batch(9, 200, 29, 40)
    outcomes = []
    for openmp in (fused_cpu._openmp(), 0):
        monkeypatch.setattr(fused_cpu, "_openmp", lambda address=openmp: address)
        outcomes.append(loss_and_gradient(logits.float(), targets, lengths, "fused"))
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


@pytest.mark.parametrize("num_working", [0, 1, 3])
def test_a_team_does_all_or_the_caller_hears_of_it(monkeypatch, three_threads, num_working):
    """In place of OpenMP a function that lets some of the team work; where all fail there is an error."""
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    asked = []

    def run_team(task, shared, num_threads, flags):
        asked.append(num_threads)
        for _ in range(num_working):
            task(shared)

    run_team_type = ctypes.CFUNCTYPE(None, task_type, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function = run_team_type(run_team)
    logits, targets, lengths = random_batch(9, 200, 29, 40)
    expected = loss_and_gradient(logits, targets, lengths, "fused")
    monkeypatch.setattr(fused_cpu, "_openmp", lambda: ctypes.cast(function, ctypes.c_void_p).value)
    if num_working == 0:
        with pytest.raises(MemoryError, match="forward variables"):
            loss_and_gradient(logits, targets, lengths, "fused")
    else:
        actual = loss_and_gradient(logits, targets, lengths, "fused")
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert asked == [3]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch may come without OpenMP")
def test_torch_s_own_threads_are_found():
    assert fused_cpu._openmp()
