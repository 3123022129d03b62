"""Sets that lie in a user's folder, written here in the layout of their publishers; and files with mistakes."""

import json

import pytest

from medjax.data.exams.groups import GROUPS, expand, missing, place, task_table
from medjax.data.exams.rows import Files
from medjax.data.exams.tasks import TASKS, load_task
from medjax.data.exams.wording import answer, question


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


PROBLEM = {
    "problem_id": "119A1",
    "problem_text": "正しいのはどれか。",
    "choices": ["ア", "イ", "ウ", "エ", "オ"],
    "text_only": True,
    "answer": ["c"],
    "points": "1",
}


@pytest.fixture
def exam(tmp_path):
    folder = tmp_path / "my-exams"
    lines(folder / "data" / "2025" / "119-A.jsonl", PROBLEM, PROBLEM | {"problem_id": "119A2", "answer": ["a or c"]})
    lines(
        folder / "data" / "2025" / "119-A_metadata.jsonl",
        {"problem_id": "119A1", "category": "循環器", "kinki": ["de"], "human_accuracy": "80.1", "breakdown": []},
    )
    return folder


def test_a_folder_in_the_layout_of_igakuqa(exam):
    task = load_task(f"igakuqa-folder:{exam}")
    first, second = task.items
    assert (task.name, task.language, task.pool_is_test, task.cuts) == ("my-exams", "ja", True, {})
    assert (first.exam, first.section, first.category) == ("2025", "A", "循環器")
    assert (first.prohibited, first.answer, first.points) == (("d", "e"), ("c",), 1)
    assert second.accepted == (("a",), ("c",))
    assert list(task.files) == ["data/2025/119-A.jsonl", "data/2025/119-A_metadata.jsonl"]
    assert load_task(str(exam)).items == task.items
    with pytest.raises(FileNotFoundError, match=r"119-A_translate.jsonl: no such file; ask in Japanese"):
        load_task(str(exam), language="en")


def test_the_announced_cuts_hold_for_whole_exams_only(exam):
    for section in "BCDEF":
        lines(exam / f"119-{section}.jsonl", PROBLEM | {"problem_id": f"119{section}1", "points": "3"})
    assert load_task(str(exam)).cuts == {"2025": (5, 221)}  # 80 % of the 6 points of B and E, rounded up


def test_prohibited_letters_are_read_in_every_form_and_none_is_dropped(exam):
    path = exam / "data" / "2025" / "119-A_metadata.jsonl"
    for kinki in (["de"], ["D", " e"], ["ｄ，Ｅ"], ["d、e"]):
        lines(path, {"problem_id": "119A1", "kinki": kinki})
        assert load_task(str(exam)).items[0].prohibited == ("d", "e")
    lines(path, {"problem_id": "119A1", "kinki": ["i"]})
    with pytest.raises(ValueError, match=r'119-A.jsonl, line 1: item 119A1: prohibited: got \["i"\], .* of a to e'):
        load_task(str(exam))


def test_a_translation_does_not_change_the_answer(exam):
    english = {"problem_text_en": "Which one?", "choices_en": ["v", "w", "x", "y", "z"], "answer": ["b"], "points": "9"}
    rows = [english | {"problem_id": f"119A{n}"} for n in (1, 2)]
    lines(exam / "data" / "2025" / "119-A_translate.jsonl", *rows)
    item = load_task(str(exam), language="en").items[0]
    assert (item.question, item.answer, item.points) == ("Which one?", ("c",), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"line 3: id: got '119A1' again \(first in .*119-A.jsonl, line 1\), expected every id once"),
        ({"problem_id": "119A3", "answer": ["f"]}, r'line 3: item 119A3: answer: got \["f"\], .* letters of a to e'),
        ({"problem_id": "x"}, r"line 3: problem_id: got 'x', expected exam, section and number such as 119A1"),
        ({"problem_id": "119A3", "points": "many"}, r"line 3: could not convert string to float"),
    ],
)
def test_a_mistake_in_a_folder_names_file_and_line(exam, change, message):
    path = exam / "data" / "2025" / "119-A.jsonl"
    path.write_text(path.read_text("utf-8") + json.dumps(PROBLEM | change) + "\n", "utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_task(str(exam))
    assert str(error.value).startswith(str(path))


def test_other_mistakes_in_a_folder(exam, tmp_path):
    path = exam / "data" / "2025" / "119-A_metadata.jsonl"
    lines(path, {"problem_id": "119A9", "category": "x"})
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 1: problem_id: got '119A9', which the problem"):
        load_task(str(exam))
    path.write_bytes(b'{"problem_id": "119A1"}\n{"category": "\x8f"}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2: got bytes that are not UTF-8"):
        load_task(str(exam))
    path.write_text('{"problem_id": "119A1"}\n[1]\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2: got a JSON list, expected one object a line"):
        load_task(str(exam))
    with pytest.raises(FileNotFoundError, match=r"none: no such folder; expected one that holds 119-A.jsonl"):
        load_task(f"igakuqa-folder:{tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: got no exam, expected files such as 119-A.jsonl"):
        load_task(str(tmp_path / "empty"))


def test_a_repeated_id_in_a_published_schema(shared_data, tmp_path):
    folder = tmp_path / "medllm_qa_benchmark"
    folder.mkdir()
    line = (shared_data / "medllm_qa_benchmark" / "medqa_en.jsonl").read_text("utf-8").splitlines()[0]
    (folder / "medqa_en.jsonl").write_text(f"{line}\n{line}\n", "utf-8")
    with pytest.raises(ValueError, match=r"medqa_en.jsonl, line 2: id: got .* again \(first in .*line 1\)"):
        load_task("medqa", data_dir=tmp_path)


def test_the_labelled_questions_of_pubmedqa_that_are_damaged(shared_data, tmp_path):
    for folder in ("medllm_qa_benchmark", "pubmedqa"):
        (tmp_path / folder).mkdir()
    line = (shared_data / "medllm_qa_benchmark" / "pubmedqa.jsonl").read_text("utf-8").splitlines()[0]
    (tmp_path / "medllm_qa_benchmark" / "pubmedqa.jsonl").write_text(line, "utf-8")
    path = tmp_path / "pubmedqa" / "ori_pqal.json"
    for damaged, message in (
        (b'{"1": {"QUESTION": "\x8f', r"ori_pqal.json, line 1: got bytes that are not UTF-8"),
        (b'{"1": {', r"ori_pqal.json: Expecting property name"),
        (b'{"1": {"QUESTION": "?"}}', r"ori_pqal.json: final_decision: missing; this is not the file the set was"),
    ):
        path.write_bytes(damaged)
        for name in ("pubmedqa", "pubmedqa-conclusion"):
            with pytest.raises(ValueError, match=message):
                load_task(name, data_dir=tmp_path)
    path.write_text("{}", "utf-8")
    with pytest.raises(ValueError, match=r"pubmedqa.jsonl: got item \d+, which ori_pqal.json does not hold"):
        load_task("pubmedqa-conclusion", data_dir=tmp_path)


def test_yakugakuqa(tmp_path):
    for exam in range(97, 110):
        folder, number = tmp_path / "yakugakuqa" / "data" / str(exam + 1915), f"{exam:03}"
        row = PROBLEM | {"problem_id": f"{number}001", "answer": ["5"], "comment": "なぜなら"}
        odd = [
            row | {"problem_id": "109091", "answer": ["2", "1"]},
            row
            | {"problem_id": "109196", "answer": ["1", "3", "5（いずれか2つ選択で正解とする）"], "text_only": False},
            row | {"problem_id": "109197", "answer": ["2", "5"]},
            row | {"problem_id": "109198", "answer": ["解なし"]},
            row | {"problem_id": "109199", "choices": "IMAGES", "text_only": False},
            row | {"problem_id": "109200", "problem_text": ""},
        ]
        lines(folder / f"{number}.jsonl", row, *(odd if exam == 109 else []))
        about = [{"problem_id": f"{number}001", "category": "Physics", "note": ""}] * 3
        one_of = {
            "problem_id": "109197",
            "category": "Law",
            "note": "いずれか1つを選択で正解とする。",
        }
        lines(folder / f"metadata_{number}.jsonl", *about, *([one_of] if exam == 109 else []))
    task = load_task("yakugakuqa", data_dir=tmp_path)
    items = {item.id: item for item in task.items}
    assert len(items) == 13 + 3
    first = items["097001"]
    assert (first.answer, first.exam, first.category) == (("e",), "2012", "Physics")
    assert (first.section, first.explanation) == ("必須", "なぜなら")
    assert (items["109091"].answer, items["109091"].section) == (("a", "b"), "理論")
    assert items["109196"].accepted == (("a", "c"), ("a", "e"), ("c", "e"))
    assert (items["109196"].num_answers, items["109196"].needs_image, items["109196"].section) == (2, True, "実践")
    assert (items["109197"].accepted, items["109197"].category) == ((("b",), ("e",)), "Law")
    assert task.dropped == {
        "109198": "withdrawn: the question has no solution",
        "109199": "its choices are images",
        "109200": "the set gives no text of the question",
    }
    assert len(load_task("yakugakuqa", data_dir=tmp_path, text_only=True).items) == 15
    path = tmp_path / "yakugakuqa" / "data" / "2012" / "097.jsonl"
    lines(path, PROBLEM | {"problem_id": "097001", "answer": ["9"]})
    with pytest.raises(ValueError, match=r"097.jsonl, line 1: item 097001: answer: got '9', expected a digit"):
        load_task("yakugakuqa", data_dir=tmp_path)
    (tmp_path / "yakugakuqa" / "data" / "2012" / "metadata_097.jsonl").write_text('{"category": "x"}\n')
    with pytest.raises(ValueError, match=r"metadata_097.jsonl, line 1: problem_id: missing"):
        load_task("yakugakuqa", data_dir=tmp_path)


def jmedbench(folder, name, test, train=()):
    lines(folder / "JMedBench" / name / "test.jsonl", *test)
    if train:
        lines(folder / "JMedBench" / name / "train.jsonl", *train)


def test_choices_of_jmedbench(tmp_path):
    row = {
        "sample_id": 7,
        "question": "がんか。",
        "options": ["はい", "いいえ", "たぶん"],
        "answer_idx": 1,
        "n_options": 3,
        "metadata": {"source": "pubmedqa", "context": "背景。"},
    }
    jmedbench(
        tmp_path, "pubmedqa_jp", [row, row | {"answer_idx": 2, "metadata": None}], [row, row | {"question": "x"}, {}]
    )
    task = load_task("pubmedqa-ja", data_dir=tmp_path)
    assert [(item.id, item.answer, item.context) for item in task.items] == [
        ("7", ("b",), "背景。"),
        ("7-2", ("c",), ""),
    ]
    assert task.items[0].choices == ("はい", "いいえ", "たぶん")
    assert (task.pool_is_test, [item.question for item in task.fewshot]) == (False, ["x"])  # what is tested never shows
    assert list(task.files) == ["JMedBench/pubmedqa_jp/test.jsonl", "JMedBench/pubmedqa_jp/train.jsonl"]
    for index in (3, -1, "1", True):
        jmedbench(tmp_path, "pubmedqa_jp", [row, row | {"answer_idx": index}])
        with pytest.raises(ValueError, match=r"test.jsonl, line 2: item 7: answer_idx: got .*, expected a number"):
            load_task("pubmedqa-ja", data_dir=tmp_path)


def test_entities_similarity_and_translation_of_jmedbench(tmp_path):
    jmedbench(
        *(tmp_path, "bc5disease_jp"),
        [
            {"text": "喘息と喘息。", "labels": ["喘息", "喘息 "], "entity_type": "Disease"},
            {"text": "なし。", "labels": ["none"], "entity_type": "Disease"},
        ],
    )
    first, second = load_task("bc5disease-ja", data_dir=tmp_path).items
    assert (first.kind, first.answer, second.answer) == ("entities", ("喘息",), ())
    assert first.question.endswith("をすべて抜き出してください。\n喘息と喘息。")
    assert "病変や症状" in first.question
    jmedbench(
        *(tmp_path, "jcsts"),
        [{"sample_id": "1", "premise": "甲", "hypothesis": "乙", "label": 4, "n_label": 6, "metadata": {}}],
    )
    task = load_task("jcsts-similarity", data_dir=tmp_path)
    assert (task.items[0].answer, task.metrics[0]) == (("4",), "pearson")
    assert "CC BY-NC-SA 4.0" in task.note
    jmedbench(tmp_path, "ejmmt", [{"english": "It hurts.", "japanese": "痛い。"}])
    (into,), (out_of,) = (load_task(f"ejmmt-{way}", data_dir=tmp_path).items for way in ("en-ja", "ja-en"))
    assert (into.question, into.answer) == ("次の英文を日本語に訳してください。\nIt hurts.", ("痛い。",))
    assert (out_of.question, out_of.answer) == (
        "Translate the following Japanese text into English.\n痛い。",
        ("It hurts.",),
    )
    assert question(into, "ja", asks_letter=True) == f"問題: {into.question}\n答え:"


def test_open_questions_and_specialist_exams_in_the_schema_of_the_harness(tmp_path):
    open_question = {"problem_text": "方針は？", "choices": [""] * 5, "answer": "入院"}
    lines(tmp_path / "harness" / "clinicalqa25.jsonl", open_question, open_question | {"answer": ""})
    task = load_task("clinicalqa25", data_dir=tmp_path)
    assert [(item.id, item.kind, item.answer) for item in task.items] == [("1", "text", ("入院",)), ("2", "text", ())]
    assert task.metrics == ("chrf",)
    assert [item.id for item in task.fewshot] == ["1"]  # an item without an answer demonstrates nothing
    row = {"problem_text": "?", "choices": ["1,5 mg", "2 mg"], "answer": "1,5 mg", "problem_id": "k"}
    lines(tmp_path / "cardioexam.jsonl", row)
    (item,) = load_task("cardioexam", data_dir=tmp_path).items
    assert (item.choices, item.answer, answer(item, as_letters=False)) == (("1,5 mg", "2 mg"), ("a",), "1,5 mg")
    lines(tmp_path / "cardioexam.jsonl", row, row | {"answer": "3 mg"})
    with pytest.raises(
        ValueError, match=r'line 2: item k: answer: got "3 mg", expected the text of one of the choices \["1,5 m'
    ):
        load_task("cardioexam", data_dir=tmp_path)


def test_sets_of_jmed_llm_that_only_the_user_may_have(tmp_path):
    folder = tmp_path / "jmed-llm"
    folder.mkdir()
    for name in ("nrner", "jcsts"):
        with pytest.raises(FileNotFoundError, match=rf"jmed-llm/{name}.csv: not in .* CC BY-NC-SA 4.0, .* copy dat"):
            load_task(name, data_dir=tmp_path)
    head = "question,optionA,optionB,optionC,optionD,optionE,optionF,answer\n"
    (folder / "jcsts.csv").write_text(f'{head}"甲, 乙？",0,1,2,3,4,5,F\n', "utf-8")
    task = load_task("jcsts", data_dir=tmp_path)
    assert [(item.id, item.question, item.answer) for item in task.items] == [("jcsts-1", "甲, 乙？", ("f",))]
    assert task.metrics[0] == "kappa_linear"
    (folder / "jcsts.csv").write_text(f"{head}甲, 乙？,0,1,2,3,4,5,F\n", "utf-8")
    with pytest.raises(ValueError, match=r"jcsts.csv, row 2: got 9 columns, .* a text that holds a comma stands"):
        load_task("jcsts", data_dir=tmp_path)
    (folder / "jcsts.csv").write_text(f"{head}甲,0,1,2,3,4,5,G\n", "utf-8")
    with pytest.raises(ValueError, match=r'jcsts.csv, row 2: item jcsts-1: answer: got \["g"\], .* letters of a to f'):
        load_task("jcsts", data_dir=tmp_path)
    (folder / "nrner.csv").write_text("tag,question,answer\nd,症状は？,\"['発熱', '咳']\"\nd,薬は？,[]\n", "utf-8")
    first, second = load_task("nrner", data_dir=tmp_path).items
    assert (first.id, first.answer, second.answer) == ("nrner-d-1", ("発熱", "咳"), ())
    for gold in ("__import__('os')", "[" * 5000, "{'a': 1}", "[1]", "発熱"):
        (folder / "nrner.csv").write_text(f'tag,question,answer\nd,症状は？,"{gold}"\n', "utf-8")
        with pytest.raises(ValueError, match=r"nrner.csv, row 2: answer: got .*, expected a list of texts such as"):
            load_task("nrner", data_dir=tmp_path)
    (folder / "nrner.csv").write_text('tag,question,answer\nd,症状は？,[]\nd,"' + "あ" * 140_000, "utf-8")
    with pytest.raises(ValueError, match=r"nrner.csv, row 3: field larger than .* a double quote that is not closed"):
        load_task("nrner", data_dir=tmp_path)
    (folder / "nrner.csv").write_bytes("tag,question,answer\nd,症状は？,[]\n".encode("shift_jis"))
    with pytest.raises(ValueError, match=r"nrner.csv, line 2: got bytes that are not UTF-8"):
        load_task("nrner", data_dir=tmp_path)


def test_demonstrations_of_jmed_llm_are_about_other_reports(shared_data):
    sizes = {"crade": 925, "rrtnm": 96, "mrner-disease": 119, "mrner-medicine": 10}
    for name, size in sizes.items():
        task = load_task(name, data_dir=shared_data)
        asked, shown = ({item.question.partition("\n")[2] for item in part} for part in (task.items, task.fewshot))
        assert (len(task.items), len(task.fewshot), asked & shown) == (100, size, set())


def test_a_question_about_entities_asks_for_a_list(shared_data):
    item = load_task("mrner-medicine", data_dir=shared_data).items[0]
    for asks_letter in (True, False):
        asked = question(item, "ja", asks_letter=asks_letter)
        assert asked.endswith('JSONのリストだけで答えてください。例: ["表現1", "表現2"] なければ []\n答え:')
    assert json.loads(answer(item, as_letters=True)) == list(item.answer)


def test_groups_stand_for_what_is_here(shared_data, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    names, skipped = expand(["mini:en", "english-medical", "medqa"], shared_data)
    assert names == ("mini:en", "igakuqa:en", "medqa", "medmcqa", "pubmedqa", "mmlu-medical")
    assert skipped == ()
    one, two = (expand(["igakuqa", "english-medical"], shared_data, language=said)[0] for said in (None, "en"))
    assert one == ("igakuqa", "igakuqa:en", "medqa", "medmcqa", "pubmedqa", "mmlu-medical")  # Japanese, and English
    assert two == ("igakuqa", "medqa", "medmcqa", "pubmedqa", "mmlu-medical")
    (tmp_path / "jmed-llm").symlink_to(shared_data / "jmed-llm")
    names, skipped = expand(["japanese-medical"], tmp_path)
    assert names == ("jmmlu-medical", "crade", "rrtnm", "smdis", "mrner-disease", "mrner-medicine")
    members = {line.split(" is left out: ")[0] for line in skipped}
    assert members == {f"japanese-medical: {name}" for name in GROUPS["japanese-medical"] if name not in names}
    assert len(skipped) == len(members)
    assert "denqa" not in names
    reason = missing("igakuqa", tmp_path)
    assert reason.startswith("igakuqa: not on this machine; with a network it is fetched")
    assert "clone https://huggingface.co/datasets/Coldog2333/JMedBench" in missing("medqa-ja", tmp_path)
    assert missing("mini") is None
    with pytest.raises(FileNotFoundError, match="task english-medical: got none of its sets"):
        expand(["english-medical"], tmp_path)


def test_every_set_names_its_licence_and_origin():
    table = task_table()
    for task in TASKS.values():
        assert task.licence
        assert task.origin
        assert f"  {task.name}  (" in table
        assert f"    licence: {task.licence}\n             origin: {task.origin}" in table
    assert {name.partition(":")[0] for members in GROUPS.values() for name in members} <= set(TASKS)


def test_the_files_named_are_those_that_are_read(shared_data):
    for task in TASKS.values():
        if task.files and place(task, shared_data) == "data":
            files = Files(shared_data, fetch=False)
            task.read(files, task.languages[0])
            assert set(files.sha256) == set(task.files), task.name


def test_where_a_set_is_is_known_without_reading_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("medjax.assets.hub_dataset", lambda *_, **__: tmp_path / "hub")
    data = tmp_path / "data"
    data.mkdir()

    def put(*paths):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("nothing that could be read")

    def places(*names):
        return [place(TASKS[name], data) for name in names]

    names = (
        "mini",
        "smdis",
        "pubmedqa",
        "igakuqa",
        "medqa-ja",
        "ejmmt-en-ja",
        "nrner",
        "cardioexam",
        "jmmlu-medical-11",
    )
    assert places(*names) == ["shipped", *["fetch"] * 5, *["yours"] * 3]
    put(data / "jmed-llm" / "smdis.csv", data / "jmed-llm" / "nrner.csv", data / "cardioexam.jsonl")
    put(data / "medllm_qa_benchmark" / "pubmedqa.jsonl", data / "JMedBench" / "medqa_jp" / "test.jsonl")
    put(*(data / file for file in TASKS["jmmlu-medical-11"].own_files[1:]))
    assert places("smdis", "pubmedqa", "jmmlu-medical-11") == ["fetch", "fetch", "yours"]  # a file is missing
    assert places("medqa-ja", "nrner", "cardioexam") == ["data"] * 3
    put(data / "jmed-llm" / "all" / "SMDIS.csv", data / "JMMLU" / "anatomy.csv")
    fetched = tmp_path / "cache" / "github" / "pubmedqa+pubmedqa" / "1cbae8e92f72"
    put(fetched / "data" / "ori_pqal.json", tmp_path / "hub" / "ejmmt" / "test.jsonl")
    assert places("smdis", "jmmlu-medical-11", "pubmedqa", "ejmmt-en-ja") == ["data", "data", "cache", "cache"]
    assert place(TASKS["pubmedqa"], tmp_path / "data") == "cache"
    with pytest.raises(FileNotFoundError, match=r"the data folder: got .*none, which is not a folder"):
        task_table(tmp_path / "none")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_sets_fits_a_terminal_and_says_the_same(tmp_path, monkeypatch, width):
    monkeypatch.setenv("MEDJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    whole, wrapped = task_table(tmp_path), task_table(tmp_path, width=width)
    assert max(map(len, wrapped.splitlines())) <= width
    assert wrapped.split() == whole.split()
    assert "\nshipped  mini  (ja, en)  accuracy\n" in wrapped
    assert "\nfetch    crade  (ja)  kappa_linear, accuracy\n" in wrapped
    assert "\nyours    nrner  (ja)  entity_partial_f1" in wrapped
    assert wrapped.startswith("shipped  part of medjax\ndata     in the folder of the question sets")


def test_sets_of_jmedbench_as_its_harness_asks_and_grades_them(tmp_path):
    rows = [
        {"sample_id": 1, "text": "発熱。", "labels": ["none"], "entity_type": "疾患"},
        {"sample_id": 2, "text": "X と Y。", "labels": ["X", "1, 2-Y", "X"], "entity_type": "Disease"},
    ]
    jmedbench(tmp_path, "bc5disease_jp", rows)
    first, second = load_task("bc5disease-ja-published", data_dir=tmp_path).items
    assert (first.kind, first.answer) == ("text", ("none",))
    assert first.question == "以下の段落において、疾患は？\n段落: 発熱。 => 疾患:"
    assert second.answer == ("X, 1,\u00a02-Y, X",)
    asked = "患者に実際に認められた病変や症状の存在を示す異常などの所見を表す表現"
    assert second.question == f"以下の段落において、{asked}は？\n段落: X と Y。 => {asked}:"
    row = {"sample_id": "1", "premise": "甲", "hypothesis": "乙", "label": 4}
    jmedbench(tmp_path, "jcsts", [row])
    task = load_task("jcsts-similarity-published", data_dir=tmp_path)
    (item,) = task.items
    assert (item.choices, item.answer, task.metrics) == (tuple("012345"), ("e",), ("grade_pearson", "accuracy"))
    assert item.question == "テキスト1：甲\nテキスト2：乙\n類似度 (0-5)："
    jmedbench(tmp_path, "jcsts", [row | {"label": 3.5}])
    with pytest.raises(ValueError, match=r"line 1: item 1: label: got 3.5, expected a whole number from 0 to 5"):
        load_task("jcsts-similarity-published", data_dir=tmp_path)
