"""Lines of samples.jsonl as objects, made up."""

import hashlib


def doc(number, **more):
    """The question of a sample: exam, section, category and image by its number."""
    found = {
        "id": f"q{number}",
        "question": f"第{number}問。正しいのはどれか。",
        "choices": ["一", "二", "三", "四", "五"],
        "answer": ["abcde"[number % 5]],
        "points": 1,
        "section": "AB"[number % 2],
        "category": ("循環器", "神経", "小児科")[number % 3],
        "exam": str(2018 + number % 5),
    }
    return found | ({"needs_image": True} if number % 4 == 0 else {}) | more


def sample(task, question, outcome="wrong", *, picked=("a",), output="a", prompt=None, scores=None, **more):
    """What the run says of one question; `scores` in place of an output where choices were scored."""
    prompt = f"頭\n{question['question']}\n答え:" if prompt is None else prompt
    picked = None if picked is None else list(picked)
    said = output if scores is None else scores
    one = {
        "order": list(range(len(question["choices"]))),
        "sample": 0,
        "template": "",
        "prompt_hash": "",
        "output": said,
    }
    return {
        **{"task": task, "doc_id": 0, "doc": question, "target": ",".join(question["answer"])},
        "arguments": {f"gen_args_{n}": {"arg_0": prompt, "arg_1": {}} for n in range(len(scores) if scores else 1)},
        "metrics": ["exact_match"],
        "doc_hash": hashlib.sha256(repr(sorted(question.items())).encode()).hexdigest(),
        "exact_match": float(outcome == "right"),
        **{"picked": picked, "correct": outcome == "right", "points": int(outcome == "right"), "prohibited": False},
        **{"unparsed": outcome == "unparsed", "asked": True, "truncated": outcome == "cut_off", "outcome": outcome},
        "asks": [{**one, "parsed": picked, "correct": outcome == "right", "truncated": outcome == "cut_off"}],
        **more,
    }
