import json

import numpy as np
import pytest

from medjax.infer.decoding import Decoding
from medjax.infer.generator import TOO_LONG, Generation, Generator, finished
from medjax.infer.programs import Programs
from medjax.infer.sampling import Sampling


class _Letters:
    """A tokenizer for the tiny model: token i is one character; 130 ends a text."""

    eos_ids = (130,)

    def decode(self, ids):
        return "".join(chr(0x3042 + i) for i in ids)


@pytest.fixture(scope="module")
def programs(tiny):
    return Programs(tiny, dtype="float32", backend="blockwise")


def _greedy(plain_logprobs, prompt, steps):
    """One token at a time, everything recomputed."""
    tokens = list(prompt)
    for _ in range(steps):
        tokens.append(int(plain_logprobs(tokens)[-1].argmax()))
    return tuple(tokens[len(prompt) :])


def _prompts(seed, shots):
    rng = np.random.default_rng(seed)
    prefix = tuple(rng.integers(0, 130, shots).tolist())
    return [prefix + tuple(rng.integers(0, 130, n).tolist()) for n in (3, 90, 17, 260, 1, 44)]


@pytest.mark.parametrize("shots", [0, 200])
def test_equals_one_at_a_time_decoding(programs, plain_logprobs, shots):
    prompts = _prompts(shots, shots)
    found = Generator(programs, _Letters(), batch_size=4, row_tokens=512).generate(prompts, max_new_tokens=13)
    for prompt, generation in zip(prompts, found, strict=True):
        expected = _greedy(plain_logprobs, prompt, 13)
        until = expected.index(130) if 130 in expected else 13
        assert generation.tokens == expected[:until]
        assert generation.finish == ("stop" if until < 13 else "length")


def test_a_stop_string_cuts_and_leading_space_does_not(programs, plain_logprobs):
    prompt = _prompts(1, 0)[1]
    expected = _Letters().decode(_greedy(plain_logprobs, prompt, 12))
    stop = expected[5]
    (generation,) = Generator(programs, _Letters(), batch_size=4, row_tokens=512).generate(
        [prompt], max_new_tokens=12, stop=(stop,)
    )
    assert generation.text == expected[: expected.index(stop)]
    assert generation.finish == "stop"
    assert finished(_Spaced(), [1, 1, 5, 1], set(), ("\n",), 9) == Generation((1, 1, 5, 1), "\n\n5", "stop")
    assert finished(_Spaced(), [1, 5, 1, 7, 7], set(), ("\n",), 9) == Generation((1, 5, 1), "\n5", "stop")
    assert finished(_Spaced(), [1, 1], set(), ("\n",), 9) is None


class _Spaced(_Letters):
    def decode(self, ids):
        return "".join("\n" if i == 1 else str(i) for i in ids)


def test_what_is_known_is_not_run_again(programs, monkeypatch):
    prompts = _prompts(4, 0)
    told: list[dict] = []
    generator = Generator(programs, _Letters(), batch_size=4, row_tokens=512)
    whole = generator.generate(prompts, max_new_tokens=9, on_generations=told.append)
    assert sorted(i for new in told for i in new) == list(range(len(prompts)))
    again = Generator(programs, _Letters(), batch_size=4, row_tokens=512)
    ran = []
    run = again.decoding.prefill
    monkeypatch.setattr(again.decoding, "prefill", lambda rows, *args: ran.extend(rows) or run(rows, *args))
    known = {i: whole[i] for i in (0, 1, 3, 4)}
    assert again.generate(prompts, max_new_tokens=9, done=known) == whole
    assert sum(len(row.tokens) for row in ran) == len(prompts[2]) + len(prompts[5])
    assert again.work == generator.work


@pytest.mark.parametrize("shots", [0, 200])
def test_slots_are_filled_again_as_sequences_end(programs, shots, monkeypatch):
    """Twenty prompts through three slots, their ends apart: each is as if it were alone, and slots seldom rest."""
    rng = np.random.default_rng(shots + 1)
    prefix = tuple(rng.integers(0, 130, shots).tolist())
    prompts = [prefix + tuple(rng.integers(0, 130, n).tolist()) for n in rng.integers(1, 60, 20)]
    stop = tuple(chr(0x3042 + i) for i in range(0, 130, 9))  # about one token in nine ends an answer
    generator = Generator(programs, _Letters(), batch_size=3, row_tokens=512)
    steps = []
    run = generator.decoding.decode
    monkeypatch.setattr(generator.decoding, "decode", lambda *args: steps.append(1) or run(*args))
    found = generator.generate(prompts, max_new_tokens=40, stop=stop)
    taken = len(steps)
    alone = Generator(programs, _Letters(), batch_size=1, row_tokens=512)
    for prompt, generation in zip(prompts, found, strict=True):
        assert generation == alone.generate([prompt], max_new_tokens=40, stop=stop)[0]
    sizes = [len(generation.tokens) for generation in found]
    assert len(set(sizes)) > 5
    longest_first = sum(-(-max(sizes[i : i + 3]) // 8) for i in range(0, 20, 3))
    assert taken <= longest_first  # batches that wait for their longest would take as many


def test_draws_do_not_depend_on_slots_or_neighbours(programs):
    """Samples of several prompts in one slot at a time, in four, and in another order; seeds make them differ."""
    prompts = [prompt for prompt in _prompts(9, 0)[:3] for _ in range(4)]
    how = [Sampling(1.0, 0.95, seed) for seed in range(len(prompts))]
    alone = Generator(programs, _Letters(), batch_size=1, row_tokens=512)
    found = alone.generate(prompts, max_new_tokens=10, sampling=how)
    together = Generator(programs, _Letters(), batch_size=4, row_tokens=512)
    order = np.random.default_rng(0).permutation(len(prompts))
    again = together.generate([prompts[i] for i in order], max_new_tokens=10, sampling=[how[i] for i in order])
    assert again == [found[i] for i in order]
    assert len({generation.tokens for generation in found[:4]}) == 4
    same = together.generate(prompts[:2], max_new_tokens=10, sampling=how[0])
    assert same == [found[0], found[0]]


def test_first_tokens_are_drawn_from_the_model_s_distribution(programs, plain_logprobs):
    """400 seeds after one prompt, at temperature 0.7: a chi-square test over the ten likeliest tokens and the rest."""
    prompt = _prompts(2, 0)[0]
    p = np.exp(plain_logprobs(prompt)[-1].astype(np.float64) / 0.7)
    p /= p.sum()
    count = 400
    generator = Generator(programs, _Letters(), batch_size=64, row_tokens=512)
    how = [Sampling(0.7, 1.0, seed) for seed in range(count)]
    found = generator.generate([prompt] * count, max_new_tokens=1, sampling=how)
    seen = np.bincount([(g.tokens or (130,))[0] for g in found], minlength=131)
    best = np.argsort(-p)[:10]
    expected = count * np.append(p[best], 1 - p[best].sum())
    got = np.append(seen[best], count - seen[best].sum())
    assert ((got - expected) ** 2 / expected).sum() < 29.6  # ten degrees of freedom, 99.9 %


@pytest.mark.parametrize(
    ("mesh", "size", "held"),
    [
        ("data=4,tensor=2", 8, (1, 3)),  # 3 kv heads are not split in 2: sequences are
        ("data=2,tensor=3", 6, (4, 1)),
    ],
)
def test_a_mesh_gives_the_same_tokens(tiny_folder, programs, mesh, size, held, monkeypatch):
    """held: sequences and kv heads of the cache on each device. The cache is in the order of accelerators."""
    import jax

    from medjax.parallel.mesh import make_mesh
    from medjax.store.loading import load_decoder

    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, there are {len(jax.devices())}")
    prompts = _prompts(6, 150)
    expected = Generator(programs, _Letters(), batch_size=4, row_tokens=512).generate(prompts, max_new_tokens=9)
    loaded = load_decoder(tiny_folder, mesh=make_mesh(mesh, jax.devices()[:size]))
    model = Programs(loaded, dtype="float32", backend="blockwise")
    monkeypatch.setattr(Decoding, "entries_last", False)
    sharded = Generator(model, _Letters(), batch_size=8, row_tokens=512)
    keys = sharded.decoding.empty_cache(8, [128])[0][0].k
    assert keys.shape[2] == 128
    assert keys.sharding.shard_shape(keys.shape)[:2] == held
    assert sharded.generate(prompts, max_new_tokens=9) == expected


def _many(rng, count, longest):
    """Prompts of many lengths, some of them beginning alike."""
    beginnings = [tuple(rng.integers(0, 130, 40).tolist()) for _ in range(3)]
    return [beginnings[i % 3] + tuple(rng.integers(0, 130, n).tolist()) for i, n in enumerate(longest(count))]


def _likeliest(tiny, sequences, length=384):
    """The likeliest token after each token of each sequence, dense attention, sixteen rows at a time."""
    import jax
    import jax.numpy as jnp

    from medjax.models.decoder import Decoder, unembedding
    from medjax.nn.attention import forest

    decoder = Decoder(tiny.config, backend="reference")

    @jax.jit
    def run(tokens):
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        hidden, _ = decoder.apply(
            {"params": tiny.params}, tokens, positions, forest(positions, jnp.full(tokens.shape, length))
        )
        return jnp.argmax(hidden @ unembedding(tiny.params).T, axis=-1)

    rows = np.zeros((-(-len(sequences) // 16) * 16, length), np.int32)
    for row, sequence in zip(rows, sequences, strict=False):
        row[: len(sequence)] = sequence
    return np.concatenate([np.asarray(run(rows[start : start + 16])) for start in range(0, len(rows), 16)])


def test_hundreds_of_prompts_are_answered_as_one_at_a_time(tiny, programs):
    """Slots in four groups, refilled: every token is the likeliest after all before it, computed without a cache."""
    rng = np.random.default_rng(11)
    prompts = _many(rng, 240, lambda count: rng.geometric(1 / 80, count).clip(1, 320))
    generator = Generator(programs, _Letters(), batch_size=32, row_tokens=512)
    found = generator.generate(prompts, max_new_tokens=21)
    assert "decode 8 steps of 32x384+256+128+128" in programs.shapes, list(programs.shapes)
    made = [generation.tokens + ((130,) if generation.finish == "stop" else ()) for generation in found]
    best = _likeliest(tiny, [prompt + tokens for prompt, tokens in zip(prompts, made, strict=True)])
    for prompt, tokens, likeliest in zip(prompts, made, best, strict=True):
        assert tokens == tuple(likeliest[len(prompt) - 1 :][: len(tokens)].tolist())
        assert len(tokens) == 21 or tokens[-1] == 130


@pytest.mark.slow
def test_igakuqa_is_answered_as_one_at_a_time(shared_data, smollm2_gguf):
    """60 questions, SmolLM2: every token is the likeliest by the scorer, which has no cache."""
    from medjax.data.exams.tasks import load_task
    from medjax.infer.language_model import load_model
    from medjax.infer.packing import Request
    from medjax.infer.scorer import Scorer

    model = load_model(smollm2_gguf)
    items = load_task("igakuqa", years=["2022"], text_only=True).items[:60]
    prompts = [tuple(model.tokenizer.encode(item.question)) for item in items]
    found = Generator(model.programs, model.tokenizer, batch_size=32).generate(prompts, max_new_tokens=16)
    asked = [Request(p, g.tokens) for p, g in zip(prompts, found, strict=True) if g.tokens]
    assert len(asked) > 50
    scores = Scorer(model.programs).score(asked)
    assert [i for i, score in enumerate(scores) if not score.greedy] == []


def test_groups_of_slots_on_a_mesh(tiny_folder, programs):
    """Two groups over four devices: the tokens of one device."""
    import jax

    from medjax.parallel.mesh import make_mesh
    from medjax.store.loading import load_decoder

    if len(jax.devices()) < 4:
        pytest.skip(f"needs 4 devices, there are {len(jax.devices())}")
    rng = np.random.default_rng(3)
    prompts = _many(rng, 40, lambda count: np.linspace(1, 400, count).astype(int))
    expected = Generator(programs, _Letters(), batch_size=8, row_tokens=512).generate(prompts, max_new_tokens=9)
    loaded = load_decoder(tiny_folder, mesh=make_mesh("data=2,tensor=2", jax.devices()[:4]))
    model = Programs(loaded, dtype="float32", backend="blockwise")
    sharded = Generator(model, _Letters(), batch_size=8, row_tokens=512)
    assert sharded.generate(prompts, max_new_tokens=9) == expected
    assert any("8x512+256" in name for name in model.shapes), list(model.shapes)


def test_an_int8_cache_gives_nearly_the_likeliest_tokens(programs, plain_logprobs):
    """Its rounding moves log-probabilities by little: what is chosen is never far from the best."""
    prompts = _prompts(8, 0)
    exact = Generator(programs, _Letters(), batch_size=4, row_tokens=512).generate(prompts, max_new_tokens=30)
    generator = Generator(programs, _Letters(), batch_size=4, row_tokens=512, int8_cache=True)
    found = generator.generate(prompts, max_new_tokens=30)
    lost = []
    for prompt, generation in zip(prompts, found, strict=True):
        made = list(generation.tokens)
        after = plain_logprobs([*prompt, *made])[len(prompt) - 1 : len(prompt) - 1 + len(made)]
        lost += (after.max(axis=1) - after[np.arange(len(made)), made]).tolist()
    assert 0 < max(lost) < 0.3
    assert sum(one.tokens[:3] == other.tokens[:3] for one, other in zip(exact, found, strict=True)) >= 4
    assert any(" int8" in name for name in programs.shapes)


def test_layers_of_one_cpu_share_the_memory_of_the_weights(programs):
    whole, layers = programs.variables["params"]["layers"], programs.by_layer["params"]["layers"]
    kernel = lambda tree: tree["mlp"]["up"]["kernel"]  # noqa: E731
    size = kernel(whole).nbytes // len(layers)
    for number, layer in enumerate(layers):
        np.testing.assert_array_equal(kernel(layer), kernel(whole)[number])
        assert kernel(layer).unsafe_buffer_pointer() == kernel(whole).unsafe_buffer_pointer() + number * size


def test_a_prompt_beyond_the_context_is_marked_and_the_others_are_answered(programs):
    generator = Generator(programs, _Letters(), batch_size=4, row_tokens=512)
    prompts = [tuple([1] * 4090), (5, 6)]
    told: dict = {}
    found = generator.generate(prompts, max_new_tokens=10, on_generations=told.update)
    assert found[0] == TOO_LONG == told[0]
    assert found[1] == generator.generate(prompts[1:], max_new_tokens=10)[0]
    with pytest.raises(ValueError, match=r"prompt 1: got no token"):
        generator.generate([(1,), ()], max_new_tokens=10)


def test_golden_text_of_stories260k(shared_data):
    from medjax.infer.language_model import load_model

    model = load_model("stories260k")
    cases = json.loads((shared_data / "oracles" / "stories260k.json").read_text("utf-8"))["cases"]
    for case in cases:
        prompt = case["prompt_token_ids"]
        generator = Generator(model.programs, model.tokenizer, batch_size=1, row_tokens=128)
        (found,) = generator.generate([tuple(prompt)], max_new_tokens=len(case["token_ids"]) - len(prompt))
        assert [*prompt, *found.tokens] == case["token_ids"], case["name"]


@pytest.mark.slow
def test_greedy_tokens_of_smollm2(shared_data, smollm2_gguf):
    from medjax.infer.language_model import load_model

    model = load_model(smollm2_gguf)
    oracle = json.loads((shared_data / "oracles" / "smollm2_135m.json").read_text("utf-8"))
    prompts = [tuple(prompt["token_ids"]) for prompt in oracle["prompts"]]
    generator = Generator(model.programs, model.tokenizer, batch_size=8, row_tokens=512)
    for prompt, found in zip(oracle["prompts"], generator.generate(prompts, max_new_tokens=16), strict=True):
        assert list(found.tokens) == [t for t in prompt["greedy"]["token_ids"] if t != 2], prompt["name"]
