import numpy as np
import pytest

from medjax.infer.packing import Request
from medjax.infer.programs import Programs
from medjax.infer.scorer import Score, Scorer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def programs(tiny):
    return Programs(tiny, dtype="float32", backend="blockwise")


def _requests(seed, shots, questions=7):
    """A few-shot prefix, questions of uneven length, choices of uneven length, one-token choices too."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: tuple(rng.integers(0, 131, rng.integers(low, high)).tolist())  # noqa: E731
    prefix = draw(shots, shots + 1) if shots else ()
    requests = []
    for number in range(questions):
        context = prefix + draw(3, 330)
        requests += [Request(context, draw(1, 2) if number % 3 == 0 else draw(1, 25)) for _ in range(5)]
    return requests


def _plain(plain_logprobs, request):
    tokens = request.context + request.continuation
    logprobs = plain_logprobs(tokens)
    start = len(request.context)
    values = [logprobs[start - 1 + i, t] for i, t in enumerate(request.continuation)]
    greedy = all(logprobs[start - 1 + i].argmax() == t for i, t in enumerate(request.continuation))
    return Score(tuple(map(float, values)), greedy)


def _assert_equal(scores, expected):
    for score, plain in zip(scores, expected, strict=True):
        np.testing.assert_allclose(score.token_logprobs, plain.token_logprobs, atol=TOLERANCE)
        assert score.greedy == plain.greedy


@pytest.mark.parametrize("shots", [0, 40, pytest.param(333, marks=pytest.mark.slow)])
def test_equals_the_plain_computation_for_every_request(programs, plain_logprobs, shots):
    requests = _requests(shots, shots)
    expected = [_plain(plain_logprobs, request) for request in requests]
    scorer = Scorer(programs, row_tokens=512)
    _assert_equal(scorer.score(requests), expected)
    assert scorer.work.tokens_computed < scorer.work.tokens_requested / 3


def test_does_not_depend_on_order_batch_or_row_length(programs, plain_logprobs):
    requests = _requests(5, 200)
    expected = [_plain(plain_logprobs, request) for request in requests]
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = Scorer(programs, row_tokens=1024).score([requests[i] for i in order])
    _assert_equal(shuffled, [expected[i] for i in order])
    one_by_one = [Scorer(programs, row_tokens=512).score([request])[0] for request in requests[:4]]
    _assert_equal(one_by_one, expected[:4])


def test_greedy_is_true_exactly_for_the_arg_max(programs, plain_logprobs):
    context = tuple(range(1, 60))
    best = int(plain_logprobs(context)[-1].argmax())
    scores = Scorer(programs, row_tokens=512).score([Request(context, (best,)), Request(context, ((best + 1) % 131,))])
    assert [score.greedy for score in scores] == [True, False]
    assert scores[0].logprob > scores[1].logprob


def test_resuming_skips_finished_rows_and_gives_the_same_bits(programs, monkeypatch):
    requests = _requests(9, 150, questions=12)
    scorer = Scorer(programs, row_tokens=512)
    batches: list[dict] = []
    whole = scorer.score(requests, on_scores=batches.append)
    assert len(batches) >= 3
    done = batches[0] | batches[1]
    calls = []
    run = programs.score
    monkeypatch.setattr(programs, "score", lambda *args: calls.append(1) or run(*args))
    assert Scorer(programs, row_tokens=512).score(requests, done=done) == whole
    assert len(calls) == len(batches) - 2
    assert Scorer(programs, row_tokens=512).score(requests, done=dict(enumerate(whole))) == whole
    assert len(calls) == len(batches) - 2


def test_what_runs_together_is_known_before(programs):
    requests = _requests(9, 150, questions=12)
    batches: list[dict] = []
    Scorer(programs, row_tokens=512).score(requests, on_scores=batches.append)
    assert Scorer(programs, row_tokens=512).together(requests) == [list(batch) for batch in batches]


def test_work_counts_tokens_and_operations(programs):
    context, config = tuple(range(1, 101)), programs.config
    scorer = Scorer(programs, row_tokens=512)
    scorer.score([Request(context, (1, 2, 3)), Request(context, (4,))])
    assert scorer.work.tokens_requested == 103 + 101
    assert scorer.work.tokens_computed == 102  # the last token of a continuation is never run
    assert scorer.work.tokens_saved == 102
    visible = 102 * 103 // 2
    expected = (
        2 * config.matmul_params * 102
        + 4 * config.layers * config.heads * config.head_dim * visible
        + 2 * 3 * config.vocab_size * config.embed  # three places are read
    )
    assert scorer.work.flops == expected


def test_a_mesh_of_eight_devices_gives_the_same_scores(tiny_folder, programs):
    import jax

    from medjax.parallel.mesh import make_mesh
    from medjax.store.loading import load_decoder

    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, there are {len(jax.devices())}")
    requests = _requests(2, 140)
    expected = Scorer(programs, row_tokens=512).score(requests)
    for mesh in ("data=8", "data=4,tensor=2", "data=2,fsdp=2,tensor=2"):
        model = load_decoder(tiny_folder, mesh=make_mesh(mesh))
        assert len(jax.tree.leaves(model.params)[0].sharding.device_set) == 8
        scores = Scorer(Programs(model, dtype="float32", backend="blockwise"), row_tokens=512).score(requests)
        _assert_equal(scores, expected)


def test_a_request_beyond_the_context_is_named(programs, tiny, plain_logprobs):
    """The context of 64 holds the 64 tokens that run; the 65th is scored from the logits after them."""
    import dataclasses

    short = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, max_length=64))
    tokens = np.random.default_rng(5).integers(0, 130, 65).tolist()
    scorer = Scorer(Programs(short, dtype="float32", backend="blockwise"))
    (score,) = scorer.score([Request(tuple(tokens[:60]), tuple(tokens[60:]))])
    expected = [plain_logprobs(tokens)[i, tokens[i + 1]] for i in range(59, 64)]
    np.testing.assert_allclose(score.token_logprobs, expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"request 0: got 66 tokens, the model's context is 64"):
        scorer.score([Request(tuple(tokens), (1,))])
    with pytest.raises(ValueError, match=r"request 1: got 4101 tokens, the model's context is 4096"):
        Scorer(programs).score([Request((1,), (2,)), Request(tuple([1] * 4100), (2,))])


@pytest.mark.slow
def test_real_japanese_items_equal_the_plain_computation(smollm2_gguf, shared_data):
    """IgakuQA questions after a demonstration, SmolLM2: two choices each, two row lengths and orders, against one
    dense forward a request."""
    import json

    import jax
    import jax.numpy as jnp

    from medjax.infer.language_model import load_model
    from medjax.models.decoder import Decoder, unembedding
    from medjax.nn.attention import forest

    model = load_model(smollm2_gguf)
    lines = (shared_data / "igakuqa" / "data" / "2022" / "116-A.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:3]]
    text = lambda row: row["problem_text"] + "\n" + "\n".join(row["choices"]) + "\n答え:"  # noqa: E731
    shots = "\n".join(text(row) + " " + row["choices"][0] for row in rows[:1])
    requests = []
    for row in rows[1:]:
        choices = [" " + choice for choice in row["choices"][:2]]
        context, continuations = model.tokenizer.encode_pairs(shots + "\n" + text(row), choices)
        requests += [Request(tuple(context), tuple(ids)) for ids in continuations]
    length = 768
    decoder, params = Decoder(model.decoder.config, backend="reference"), model.decoder.params

    @jax.jit
    def plain(params, tokens):  # as an argument: weights that are constants are folded for minutes
        positions = jnp.arange(length)[None]
        trees = forest(positions, jnp.full((1, length), length))
        hidden, _ = decoder.apply({"params": params}, tokens[None], positions, trees)
        logits = hidden[0, :-1] @ unembedding(params).T
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], axis=1)[:, 0]

    expected = []
    for request in requests:
        tokens = np.zeros(length, np.int32)
        n = len(request.context) + len(request.continuation)
        tokens[:n] = request.context + request.continuation
        expected.append(np.asarray(plain(params, tokens))[len(request.context) - 1 : n - 1])
    order = np.random.default_rng(0).permutation(len(requests))
    for row_tokens, indices in ((1024, range(len(requests))), (512, order)):
        scores = Scorer(model.programs, row_tokens=row_tokens).score([requests[i] for i in indices])
        for i, score in zip(indices, scores, strict=True):
            np.testing.assert_allclose(score.token_logprobs, expected[i], atol=TOLERANCE)
