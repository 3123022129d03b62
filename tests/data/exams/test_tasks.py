"""Every question set becomes items: counts, irregular records put right, filters, pools, digests."""

import hashlib
import json
from collections import Counter

import pytest

from medjax.data.exams.jmed_llm import JMMLU_SUBJECTS
from medjax.data.exams.tasks import TASKS, PassRule, load_task

MULTI = {"igakuqa": Counter({1: 1702, 2: 243, 3: 55}), "denqa": Counter({1: 408, 2: 174, 3: 92, 4: 17, 5: 8})}


@pytest.mark.parametrize(
    ("name", "items", "choices", "letters"),
    [
        ("denqa", 699, {5: 694, 6: 3, 7: 1, 8: 1}, None),
        ("medqa", 1273, {5: 1273}, None),
        ("medqa-4op", 1273, {4: 1273}, None),
        ("medmcqa", 4183, {4: 4183}, None),
        ("pubmedqa", 500, {3: 500}, {"a": 276, "b": 169, "c": 55}),
        ("pubmedqa-conclusion", 500, {3: 500}, {"a": 276, "b": 169, "c": 55}),
        ("mmlu-medical", 1089, {4: 1089}, None),
        ("jmmlu-medical", 681, {4: 681}, {"a": 137, "b": 165, "c": 162, "d": 217}),
        ("jmmlu-medical-100", 100, {4: 100}, {"a": 25, "b": 25, "c": 25, "d": 25}),
        ("smdis", 100, {2: 100}, {"a": 50, "b": 50}),
    ],
)
def test_counts_of_the_sets(shared_data, name, items, choices, letters):
    task = load_task(name, data_dir=shared_data)
    assert len(task.items) == len({item.id for item in task.items}) == items
    assert Counter(len(item.choices) for item in task.items) == choices
    if letters:
        assert Counter(item.answer[0] for item in task.items) == letters
    assert Counter(item.num_answers for item in task.items) == MULTI.get(name, {1: items})
    assert all(type(item.points) is int for item in task.items)


@pytest.mark.parametrize("language", ["ja", "en"])
def test_igakuqa_counts(shared_data, language):
    task = load_task("igakuqa", data_dir=shared_data, language=language)
    items = {item.id: item for item in task.items}
    assert Counter(item.num_answers for item in task.items) == MULTI["igakuqa"]
    assert Counter(len(item.choices) for item in task.items) == {5: 1984, 0: 12, 6: 2, 8: 2}
    assert Counter(item.points for item in task.items) == {1: 1741, 3: 248, 0: 11}
    assert sum(not item.needs_image for item in task.items) == 1471
    assert sum(bool(item.prohibited) for item in task.items) == 135
    assert Counter(i.section for i in task.items if i.prohibited) == dict(A=37, D=29, E=23, F=18, B=17, C=11)
    categories = Counter(item.category for item in task.items)
    assert (len(categories), categories["公衆衛生"], categories["リハビリ"]) == (28, 270, 6)
    single = [i for i in task.items if not i.needs_image and len(i.choices) == 5 and i.num_answers == 1]
    assert Counter(item.answer[0] for item in single) == dict(a=224, b=247, c=245, d=245, e=271)
    assert task.exam_sizes == {str(year): 400 for year in range(2018, 2023)}
    assert items["113F84"].answer == ("7.20",)
    assert items["116F74"].answer == ("04",)
    assert task.required_sections == ("B", "E")


def test_igakuqa_irregular_records(shared_data):
    items = {item.id: item for item in load_task("igakuqa", data_dir=shared_data).items}
    glued = {
        **{name: "de" for name in ("112D19", "112D43", "112D50", "112D56", "115E28")},
        **{"112D65": "cd", "112A27": "cde", "112E42": "bde", "112C9": "abcd", "116F38": "ade"},
    }
    full_width = {"112F66": "b", "113B26": "d", "114F70": "c", "115F46": "b", "116C67": "c"}
    for name, letters in (glued | full_width).items():
        assert items[name].prohibited == tuple(letters)
    assert items["112B30"].accepted == (("a",), ("d",))
    assert [item.id for item in items.values() if item.any_answer] == ["116A71"]
    assert items["114C11"].choices == ("\u3000", "\u3000", "\u3000", "\u3000", "ｅ")
    assert len(items["113C66"].letters) == 6
    assert items["115D75"].letters[-1] == "h"
    known = [item.human_accuracy for item in items.values() if item.human_accuracy is not None]
    assert (len(known), round(sum(known) / len(known), 4)) == (1987, 0.8326)
    assert items["113C1"].human_accuracy == pytest.approx(0.942)


def test_igakuqa_demonstrations_are_the_three_of_its_authors(shared_data):
    japanese = load_task("igakuqa", data_dir=shared_data)
    english = load_task("igakuqa", data_dir=shared_data, language="en")
    assert not load_task("mini").pool_by_authors
    for task in (japanese, english):
        assert task.pool_by_authors
        assert not task.pool_is_test
        assert [(item.id, item.answer, item.points) for item in task.fewshot] == [
            ("100E5", ("e",), 1),
            ("100A60", ("a", "b"), 1),
            ("100A1", ("c",), 1),
        ]
    assert japanese.fewshot[2].choices[2] == "腎低形成"
    assert english.fewshot[2].choices[2] == "Renal hypoplasia"
    assert english.digest != japanese.digest


def test_cuts_are_the_announced_ones(shared_data):
    assert load_task("igakuqa", data_dir=shared_data, years=[2020]).cuts == {
        "2018": (160, 208),
        "2019": (160, 209),
        "2020": (158, 217),
        "2021": (160, 209),
        "2022": (158, 214),
    }
    assert PassRule().cuts("2018", 200, 299) is None


def test_denqa_drops_withdrawn_items_and_keeps_order(shared_data):
    task = load_task("denqa", data_dir=shared_data)
    assert len(task.dropped) == 21
    assert set(task.dropped.values()) == {"withdrawn: the set gives no answer"}
    ordered = {item.id: item.answer for item in task.items if item.ordered}
    assert set(ordered) == {"116A84", "116B76", "116C54", "116D74", "117A89", "117B89", "117C89"}
    assert ordered["116A84"] == ("c", "a", "b", "d", "e")
    assert task.exam_sizes == {"116": 349, "117": 350}
    assert task.pool_is_test


def test_pools_outside_the_test_set(shared_data):
    pubmedqa = load_task("pubmedqa", data_dir=shared_data)
    assert not pubmedqa.pool_is_test
    assert len(pubmedqa.fewshot) == 500
    assert not {item.id for item in pubmedqa.fewshot} & {item.id for item in pubmedqa.items}
    # yes 552, no 338, maybe 110 of all 1,000
    assert Counter(item.answer[0] for item in (*pubmedqa.items, *pubmedqa.fewshot)) == dict(a=552, b=338, c=110)
    assert pubmedqa.fewshot[0].context.split()
    published = json.loads((shared_data / "pubmedqa" / "ori_pqal.json").read_text("utf-8"))
    assert all(item.explanation == published[item.id]["LONG_ANSWER"] != "" for item in pubmedqa.fewshot)
    hundred = load_task("jmmlu-medical-100", data_dir=shared_data)
    assert (hundred.pool_is_test, len(hundred.fewshot)) == (False, 581)
    assert not {item.question for item in hundred.fewshot} & {item.question for item in hundred.items}


def test_filters(shared_data):
    def ids(**options):
        return [item.id for item in load_task("igakuqa", data_dir=shared_data, **options).items]

    assert [len(ids(years=[year], text_only=True)) for year in range(2018, 2023)] == [286, 296, 287, 301, 301]
    assert len(ids(years=("2020",), sections=("B", "E"))) == 100
    assert ids(years=[2018], sections=["A"])[:2] == ["112A1", "112A2"]
    assert len(ids(categories=["循環器"])) == 137
    for option, value, message in (
        ("years", [112], "years: got 112, expected some of 2018, 2019"),
        ("sections", ["G"], "sections: got G, expected some of A, B"),
        ("categories", ["x"], "categories: got x, expected some of"),
        ("language", "fr", "language: got 'fr', expected ja or en"),
    ):
        with pytest.raises(ValueError, match=message):
            ids(**{option: value})


@pytest.mark.parametrize("name", ["mini", "medqa", "ward.csv"])
def test_years_of_a_set_that_knows_none(name, tmp_path):
    with pytest.raises(ValueError) as error:  # before any file is looked for
        load_task(name, years=[2018], data_dir=tmp_path / "none")
    assert str(error.value) == (
        f"task {name.removesuffix('.csv')}: years: got 2018 for a set that knows no years, expected none; leave "
        "--years out, or ask a set that has them: igakuqa (2018 to 2022), denqa (116 to 117), yakugakuqa (2012 to "
        "2024), or a folder of exams in IgakuQA's layout."
    )


def test_the_years_named_are_those_of_the_items(shared_data):
    for name in ("igakuqa", "denqa"):
        assert {item.exam for item in load_task(name, data_dir=shared_data).items} == set(TASKS[name].years)
    with pytest.raises(ValueError, match="task denqa: years: got 2022, expected some of 116, 117"):
        load_task("denqa", years=["2022"], data_dir=shared_data)


def test_the_digest_covers_every_file_read(shared_data):
    task = load_task("jmmlu-medical-100", data_dir=shared_data)
    sums = dict(reversed(line.split("  ", 1)) for line in (shared_data / "SHA256SUMS").read_text().splitlines())
    assert task.files == {
        f"jmed-llm/{name}": sums[f"jmed-llm/{name}"] for name in ("jmmlu_med.csv", "all/JMMLU-Med.csv")
    }
    lines = "".join(f"{sha}  {name}\n" for name, sha in task.files.items())
    assert task.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert "CC BY-SA 4.0" in task.note
    assert len(load_task("igakuqa", data_dir=shared_data, language="en").files) == 91


def test_a_changed_local_file_is_named(shared_data, tmp_path):
    folder = tmp_path / "medllm_qa_benchmark"
    folder.mkdir()
    lines = (shared_data / "medllm_qa_benchmark" / "denqa.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "denqa.jsonl").write_text("".join(lines[:3]), "utf-8")
    task = load_task("denqa", data_dir=tmp_path)
    assert [item.id for item in task.items] == ["116A1", "116A2", "116A3"]
    assert "differ from the published ones: medllm_qa_benchmark/denqa.jsonl" in task.note
    assert task.unpinned == ("medllm_qa_benchmark/denqa.jsonl",)
    assert load_task("denqa", data_dir=shared_data).unpinned == ()
    (folder / "denqa.jsonl").write_text(lines[0] + lines[1].replace('"answer": ["d"]', '"answer": ["x"]'), "utf-8")
    with pytest.raises(ValueError, match=r'denqa.jsonl, line 2: item 116A2: answer: got \["x"\]'):
        load_task("denqa", data_dir=tmp_path)
    (folder / "denqa.jsonl").write_text(lines[0].replace("problem_text", "text"), "utf-8")
    with pytest.raises(ValueError, match=r"denqa.jsonl, line 1: problem_text: missing"):
        load_task("denqa", data_dir=tmp_path)


@pytest.mark.parametrize("inside", ["", "JMMLU"])
def test_original_jmmlu_files_have_a_mark_and_no_header(tmp_path, inside):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    for subject in JMMLU_SUBJECTS[1:]:
        (folder / f"{subject}.csv").write_bytes(f"\ufeff{subject}?,1,2,3,4,C\r\n".encode())
    (folder / "anatomy.csv").write_bytes('\ufeff"骨の\n問題",一,"二,三",四,五,B\r\nQ2,1,2,3,4,d\r\n'.encode())
    (folder / "virology.csv").write_bytes("\ufeffウイルス,1,2,3,4,A\r\n".encode())
    (folder / "world_history.csv").write_bytes("\ufeff歴史,1,2,3,4,A\r\n".encode())
    task = load_task("jmmlu-medical-11", data_dir=tmp_path)
    assert [(item.id, item.category, item.answer) for item in task.items] == [
        ("anatomy-1", "anatomy", ("b",)),
        ("anatomy-2", "anatomy", ("d",)),
        *[(f"{subject}-1", subject, ("c",)) for subject in JMMLU_SUBJECTS[1:-1]],
        ("virology-1", "virology", ("a",)),
    ]
    assert task.items[0].question == "骨の\n問題"
    assert task.items[0].choices[1] == "二,三"
    assert list(task.files) == [f"JMMLU/{subject}.csv" for subject in JMMLU_SUBJECTS]
    (folder / "virology.csv").write_bytes("\ufeffウイルス,1,2,3,A\r\n".encode())
    with pytest.raises(ValueError, match=r"virology.csv, row 1: got 5 columns, expected question, A, B, C, D, answer"):
        load_task("jmmlu-medical-11", data_dir=tmp_path)
    (folder / "virology.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"jmmlu-medical-11: .*: got no virology.csv, expected all of JMMLU's"):
        load_task("jmmlu-medical-11", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"jmmlu-medical-11: got no data folder, .*; name it by --data-dir"):
        load_task("jmmlu-medical-11")


def test_the_sets_of_jmed_llm_take_no_other_files_of_jmmlu(shared_data, tmp_path):
    for subject in JMMLU_SUBJECTS:
        (tmp_path / f"{subject}.csv").write_bytes(f"{subject}?,1,2,3,4,C\r\n".encode())
    (tmp_path / "jmed-llm").symlink_to(shared_data / "jmed-llm")
    for name, count in (("jmmlu-medical", 681), ("jmmlu-medical-100", 100)):
        task = load_task(name, data_dir=tmp_path)
        assert (len(task.items), {file.partition("/")[0] for file in task.files}) == (count, {"jmed-llm"})


def test_an_own_exam_is_a_task(tmp_path):
    path = tmp_path / "ward.jsonl"
    row = '{"id": "q%d", "question": "?", "choices": ["x", "y"], "answer": ["b"], "points": %d, "section": "%s"}\n'
    path.write_text(row % (1, 3, "required") + row % (2, 1, "general"), "utf-8")
    task = load_task(str(path))
    assert (task.name, task.exam_sizes, task.required_sections, task.cuts) == ("ward", {"ward": 2}, ("required",), {})
    assert [item.exam for item in task.items] == ["ward", "ward"]
    assert task.files == {"ward.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("questions", "language"),
    [
        (("Which drug?", "How many?"), "en"),
        (("Which drug?", "どの薬か。"), "ja"),
        (("CTの所見", "?"), "ja"),
        (("ﾊｲ?", "?"), "ja"),
        (("β-blocker – 5 µg?", "Ménière?"), "en"),
    ],
)
def test_an_own_exam_is_asked_in_the_language_of_its_questions(tmp_path, questions, language):
    path = tmp_path / "ward.jsonl"
    rows = [{"id": f"{n}", "question": q, "choices": ["一", "x"], "answer": ["b"]} for n, q in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert load_task(str(path)).language == language
    assert [load_task(str(path), language=said).language for said in ("ja", "en")] == ["ja", "en"]


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"^task: got 'igakuka', expected one of mini, .*; did you mean igakuqa\?$"):
        load_task("igakuka")
    with pytest.raises(ValueError, match=r", a group \(japanese-medical, english.*; did you mean japanese-medical\?$"):
        load_task("japanese-medcal")
    with pytest.raises(ValueError, match=r"got the group english-medical, .* without a language, .*: igakuqa:en, me"):
        load_task("english-medical", language="en")


def test_the_shipped_exam_has_the_same_key_in_both_languages():
    japanese, english = load_task("mini"), load_task("mini", language="en")
    assert TASKS["mini"].languages == ("ja", "en")
    assert len(japanese.items) == len(english.items) >= 100

    def key(item):
        return item.id, item.answer, item.points, item.section, item.category, item.prohibited, len(item.choices)

    assert [key(item) for item in japanese.items] == [key(item) for item in english.items]
    required = sum(item.points for item in japanese.items if item.section == "required")
    general = sum(item.points for item in japanese.items) - required
    assert japanese.cuts == {"mini": (-(-required * 8 // 10), -(-general * 7 // 10))}


def test_the_pool_of_smdis_is_balanced_and_shares_no_post_with_the_test(shared_data):
    task = load_task("smdis", data_dir=shared_data)
    assert not task.pool_is_test
    posts = [
        [item.question.partition("「")[2].rstrip("」。") for item in items] for items in (task.items, task.fewshot)
    ]
    assert not [post for post in posts[1] if any(asked in post for asked in posts[0])]
    found = Counter((item.category, item.answer) for item in task.fewshot)
    assert sum(found.values()) == 3600
    assert {disease: found[disease, ("a",)] for disease, _ in found} == {
        disease: found[disease, ("b",)] for disease, _ in found
    }


def test_a_file_with_another_ending_is_told_what_is_read(tmp_path):
    (tmp_path / "ward.xlsx").write_bytes(b"PK")
    with pytest.raises(
        ValueError, match=r"task: got the file .*ward.xlsx, .* ends in .jsonl, .json, .csv, .tsv; save a table"
    ):
        load_task(str(tmp_path / "ward.xlsx"))


def test_an_exam_is_the_same_in_every_format(tmp_path):
    rows = [
        {
            "id": "1",
            "question": "どれか。",
            "choices": ["ア", "イ"],
            "answer": ["b"],
            "points": 3,
            "section": "required",
        },
        {"id": "2", "question": "いくつ?", "choices": [], "answer": ["04"]},
    ]
    (tmp_path / "ward.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "ward.json").write_text(json.dumps({"name": "ward", "items": rows}, indent=2), "utf-8")
    table = "id,question,a,b,answer,points,section\n1,どれか。,ア,イ,イ,3,required\n2,いくつ?,,,04,,\n"
    (tmp_path / "ward.CSV").write_text(table, "utf-8-sig")
    one, two, three = (load_task(str(tmp_path / f"ward.{ending}")) for ending in ("jsonl", "json", "CSV"))
    assert one.items == two.items == three.items
    assert (three.name, three.required_sections, three.language) == ("ward", ("required",), "ja")
