import json

import numpy as np
import pytest

from medjax.infer.generator import Generation, Generator
from medjax.infer.programs import Programs


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
    finish = Generator(programs, _Spaced(), batch_size=4, row_tokens=512)._finish
    assert finish([1, 1, 5, 1], set(), ("\n",), 9) == Generation((1, 1, 5, 1), "\n\n5", "stop")
    assert finish([1, 1], set(), ("\n",), 9) is None


class _Spaced(_Letters):
    def decode(self, ids):
        return "".join("\n" if i == 1 else str(i) for i in ids)


def test_finished_batches_are_not_run_again(programs, monkeypatch):
    prompts = _prompts(4, 0)
    batches: list[dict] = []
    generator = Generator(programs, _Letters(), batch_size=4, row_tokens=512)
    whole = generator.generate(prompts, max_new_tokens=9, on_generations=batches.append)
    assert len(batches) == 2
    calls = []
    run = programs.prefill
    monkeypatch.setattr(programs, "prefill", lambda *args: calls.append(1) or run(*args))
    again = Generator(programs, _Letters(), batch_size=4, row_tokens=512)
    assert again.generate(prompts, max_new_tokens=9, done=batches[0]) == whole
    assert len(calls) == 1
    assert again.work == generator.work


@pytest.mark.parametrize(
    ("mesh", "size", "held"),
    [
        ("data=4,tensor=2", 8, (1, 3)),  # 3 kv heads are not split in 2: sequences are
        ("data=2,tensor=3", 6, (4, 1)),
    ],
)
def test_a_mesh_gives_the_same_tokens(tiny_folder, programs, mesh, size, held):
    """held: sequences and kv heads of the cache on each device."""
    import jax

    from medjax.parallel.mesh import make_mesh
    from medjax.store.loading import load_decoder

    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, there are {len(jax.devices())}")
    prompts = _prompts(6, 150)
    expected = Generator(programs, _Letters(), batch_size=4, row_tokens=512).generate(prompts, max_new_tokens=9)
    loaded = load_decoder(tiny_folder, mesh=make_mesh(mesh, jax.devices()[:size]))
    model = Programs(loaded, dtype="float32", backend="blockwise")
    cache = model.empty_cache(8, 128)[0]
    assert cache.sharding.shard_shape(cache.shape)[1:3] == held
    sharded = Generator(model, _Letters(), batch_size=8, row_tokens=512)
    assert sharded.generate(prompts, max_new_tokens=9) == expected


def test_a_prompt_beyond_the_context_is_named(programs):
    with pytest.raises(ValueError, match=r"prompt 0: got 4090 tokens and 10 new ones"):
        Generator(programs, _Letters()).generate([tuple([1] * 4090)], max_new_tokens=10)


def test_golden_text_of_stories260k(shared_data):
    from medjax.infer.language_model import load_model

    model = load_model("stories260k")
    cases = json.loads((shared_data / "oracles" / "stories260k.json").read_text("utf-8"))["cases"]
    for case in cases:
        prompt = case["prompt_token_ids"]
        generator = Generator(model.programs, model.tokenizer, batch_size=1, row_tokens=128)
        (found,) = generator.generate([tuple(prompt)], max_new_tokens=len(case["token_ids"]) - len(prompt))
        assert [*prompt, *found.tokens] == case["token_ids"], case["name"]


def test_greedy_tokens_of_smollm2(shared_data, smollm2_gguf):
    from medjax.infer.language_model import load_model

    model = load_model(smollm2_gguf)
    oracle = json.loads((shared_data / "oracles" / "smollm2_135m.json").read_text("utf-8"))
    prompts = [tuple(prompt["token_ids"]) for prompt in oracle["prompts"]]
    generator = Generator(model.programs, model.tokenizer, batch_size=8, row_tokens=512)
    for prompt, found in zip(oracle["prompts"], generator.generate(prompts, max_new_tokens=16), strict=True):
        assert list(found.tokens) == [t for t in prompt["greedy"]["token_ids"] if t != 2], prompt["name"]
