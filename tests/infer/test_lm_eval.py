"""medjax as a model of lm-evaluation-harness against the harness's Hugging Face back end, on SmolLM2 in float32.

python -m pytest -m peer tests/infer/test_lm_eval.py, where lm_eval, torch and transformers are installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peers import peers_folder

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: medjax cannot be a model of it")
pytest.importorskip("torch", reason="torch is not installed: the harness's back end to compare with needs it")
pytest.importorskip("transformers", reason="transformers is not installed: the back end to compare with needs it")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from medjax.assets import sha256_file  # noqa: E402
from medjax.infer.lm_eval import MedjaxLM, model_arguments  # noqa: E402

pytestmark = pytest.mark.peer

ROOT = Path(__file__).resolve().parents[2]
MAX_LENGTH = 96  # short, so that windows and cuts are there
LONG = "The heart pumps blood through the body. Arteries carry it away from the heart, veins bring it back. " * 8
QUESTION = "Question: Which vitamin is made in the skin by sunlight?\nA. vitamin A\nB. vitamin D\nAnswer:"


@pytest.fixture(scope="module")
def folder(smollm2_gguf):
    """SmolLM2 as a Hugging Face folder, made once by transformers."""
    from checkpoint import converted

    name = f"{smollm2_gguf.stem}-{sha256_file(smollm2_gguf)[:12]}"
    return converted(smollm2_gguf, peers_folder() / "checkpoints" / name)


@pytest.fixture(scope="module")
def ours(smollm2_gguf):
    return MedjaxLM.create_from_arg_string(f"path={smollm2_gguf},max_length={MAX_LENGTH}", {"batch_size": 4})


@pytest.fixture(scope="module")
def theirs(folder):
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1, max_length=MAX_LENGTH)


def _instances(kind, arguments, task="exam"):
    return [Instance(kind, {}, args, i, (task, i, 1)) for i, args in enumerate(arguments)]


def test_loglikelihoods_equal(ours, theirs):
    pairs = [
        *((QUESTION, f" {choice}") for choice in ("A", "B", "vitamin A", "vitamin D")),
        ("最も考えられるのはどれか。 \n答え:", "急性心筋梗塞"),
        ("The capital of France is ", "Paris"),  # the blank moves over
        ("", "Aspirin lowers fever."),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello"),
        (LONG, " The lungs"),  # loses its beginning
    ]
    requests = _instances("loglikelihood", pairs[:6], "one") + _instances("loglikelihood", pairs[6:], "two")
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    for pair, (logprob, greedy), (their_logprob, their_greedy) in zip(pairs, found, expected, strict=True):
        assert logprob == pytest.approx(their_logprob, abs=1e-3), pair
        assert greedy == their_greedy, pair
    assert {greedy for _, greedy in found} == {True, False}


def test_rolling_loglikelihoods_equal(ours, theirs):
    requests = _instances("loglikelihood_rolling", [(LONG,), ("発熱と咳を認める。",), ("",)])
    assert len(ours.tok_encode(LONG)) > MAX_LENGTH + 1
    assert ours.loglikelihood_rolling(requests) == pytest.approx(theirs.loglikelihood_rolling(requests), rel=1e-3)


def test_generated_texts_equal(ours, theirs):
    chat = [{"role": "user", "content": "Name one vitamin."}]
    greedy = {"do_sample": False, "temperature": 0.0, "max_gen_toks": 8}
    asked = [
        ("The three primary colours are", {**greedy, "until": ["\n", "."]}),
        ("1, 2, 3, 4,", {**greedy, "until": "9"}),
        ("Q: What is fever?\nA:", {**greedy, "until": []}),
        (f"{LONG}\nQ: What pumps blood?\nA:", {**greedy, "until": ["Q:"]}),  # loses its beginning
        (ours.apply_chat_template(chat), {**greedy, "until": ["<|im_end|>"]}),
        ("Symptoms of influenza:", {**greedy, "until": ["\n"]}),  # the stop comes before the first word
    ]
    requests = _instances("generate_until", asked)
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests)
    assert found[-1] == ""


def test_draws_repeat_and_a_narrow_nucleus_is_greedy(ours):
    prompt = "A list of medicines:"
    (greedy,) = ours.generate_until(_instances("generate_until", [(prompt, {"max_gen_toks": 6})]))
    narrow = (prompt, {"do_sample": True, "top_p": 1e-6, "max_gen_toks": 6})
    wide = (prompt, {"do_sample": True, "temperature": 1.5, "max_gen_toks": 6})
    texts = ours.generate_until(_instances("generate_until", [wide, wide]))
    assert len({*texts, greedy}) == 3
    assert ours.generate_until(_instances("generate_until", [narrow])) == [greedy]
    assert ours.generate_until(_instances("generate_until", [wide, ("x", wide[1]), wide]))[::2] == texts


@pytest.mark.parametrize("content", ["Aspirin", "Aspirin \n", " It is "])
def test_chat_templates_equal(ours, theirs, content, monkeypatch):
    monkeypatch.setattr(theirs.tokenizer, "chat_template", ours.model.tokenizer.chat_template)  # not converted
    history = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Which?"}]
    assert ours.apply_chat_template(history) == theirs.apply_chat_template(history)
    history.append({"role": "assistant", "content": content})
    assert ours.apply_chat_template(history, False) == theirs.apply_chat_template(history, False)
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_finished_requests_are_kept_for_the_harness_cache(ours, monkeypatch):
    kept = []

    class Hook:
        def add_partial(self, kind, args, answer):
            kept.append((kind, args, answer))

    monkeypatch.setattr(ours, "cache_hook", Hook())
    pair, text, asked = ("one two", " three"), ("one two three",), ("1, 2,", {"max_gen_toks": 4})
    drawn = ("1, 2,", {"do_sample": True, "max_gen_toks": 4})
    scores = ours.loglikelihood(_instances("loglikelihood", [pair]))
    rolling = ours.loglikelihood_rolling(_instances("loglikelihood_rolling", [text]))
    texts = ours.generate_until(_instances("generate_until", [asked, drawn]))
    assert kept == [
        ("loglikelihood", pair, scores[0]),
        ("loglikelihood_rolling", text, rolling[0]),
        ("generate_until", asked, texts[0]),
    ]


def test_what_does_not_fit_is_told(ours, caplog):
    ours.loglikelihood(_instances("loglikelihood", [(LONG, " a"), ("one", " two")]))
    assert "1 of 2 requests lost their beginning: they are longer than 97 tokens" in caplog.text
    with pytest.raises(ValueError, match=r"got 0 tokens of '' after …'one', expected 1 to 96 after the context"):
        ours.loglikelihood(_instances("loglikelihood", [("one", "")]))
    with pytest.raises(ValueError, match=r"got max_gen_toks=96, expected less than the context of 96; lower it"):
        ours.generate_until(_instances("generate_until", [("one", {"max_gen_toks": 96})]))


def test_arguments():
    given = {"path": "m", "mesh": "data=4", "tensor": 2}
    assert model_arguments(given, {"batch_size": 1, "device": None}) == {
        "path": "m",
        "mesh": "data=4,tensor=2",
        "batch_size": 1,
    }
    assert model_arguments({"path": "m", "batch_size": 8}, {"batch_size": 1}) == {"path": "m", "batch_size": 8}
    with pytest.raises(ValueError, match=r"model_args: got pretrained, expected path and any of adapter, revision"):
        MedjaxLM.create_from_arg_string("pretrained=gpt2")
    with pytest.raises(ValueError, match=r"dtype: got 'auto', expected float32 or bfloat16"):
        MedjaxLM("smollm2-135m", dtype="auto")
    with pytest.raises(ValueError, match=r"batch_size: got 'many', expected auto or a whole number"):
        MedjaxLM("smollm2-135m", batch_size="many")


_DOCUMENTS = [
    {"question": "Which organ pumps blood?", "choices": ["the heart", "the liver", "the kidney"], "answer": 0},
    {"question": "Which vitamin does sunlight make?", "choices": ["vitamin A", "vitamin D"], "answer": 1},
    {"question": "血圧を測るのはどれか。", "choices": ["体温計", "血圧計"], "answer": 1},
    {"question": "Which of these is an antibiotic?", "choices": ["insulin", "penicillin"], "answer": 1},
]
_TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_text": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: " {{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
    "local_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


def test_the_registry_finds_the_model_by_the_entry_point():
    """What a harness that loads entry points does: a name that stands for the point until the model is asked for."""
    code = """
from importlib.metadata import entry_points
from lm_eval.api.registry import get_model, model_registry
(point,) = entry_points(group="lm_eval.models", name="medjax")
model_registry.register(point.name, target=point)
print(get_model("medjax"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split("\n")[-2:] == ["<class 'medjax.infer.lm_eval.MedjaxLM'>", ""], done.stderr


def test_the_command_gives_the_same_results(smollm2_gguf, theirs, tmp_path):
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _DOCUMENTS), "utf-8")
    for name, text in _TASKS.items():
        where = f"{{data_files: {{test: {data}}}, cache_dir: {tmp_path / 'cache'}}}"
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {where}\ntest_split: test\n"
        (tmp_path / f"{name}.yaml").write_text(head + text.lstrip(), "utf-8")
    arguments = [f"--model_args=path={smollm2_gguf},max_length={MAX_LENGTH}", "--batch_size=auto", "--log_samples"]
    command = [
        sys.executable,
        "-m",
        "medjax.infer.lm_eval",
        "--model=medjax",
        *arguments,
        f"--tasks={','.join(_TASKS)}",
    ]
    command += [f"--include_path={tmp_path}", f"--output_path={tmp_path / 'out'}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    ours = json.loads(written.read_text("utf-8"))

    manager = TaskManager(include_path=str(tmp_path))
    expected = lm_eval.simple_evaluate(theirs, tasks=list(_TASKS), task_manager=manager, bootstrap_iters=0)
    for task in _TASKS:
        names = [name for name in expected["results"][task] if "," in name and "stderr" not in name]
        assert len(names) == 1 + (task != "local_text")
        for name in names:
            assert ours["results"][task][name] == pytest.approx(expected["results"][task][name], rel=1e-3), name
        (lines,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        samples = {row["doc_id"]: row["resps"] for row in map(json.loads, lines.read_text("utf-8").splitlines())}
        assert len(samples) == len(_DOCUMENTS)
        if task == "local_text":
            assert samples == {row["doc_id"]: row["resps"] for row in expected["samples"][task]}
    assert ours["config"]["model_sha"] == _digest(smollm2_gguf)
    assert ours["config"]["model_num_parameters"] == theirs.model.num_parameters()


def _digest(gguf):
    from medjax.store.adapters import files_digest

    return files_digest([gguf])
