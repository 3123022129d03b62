"""The question sets that medjax knows by name, each with its licence and where it comes from, and groups of them.

Those with `sets` are read from the folder of question sets or fetched from GitHub at a pinned commit; those of
JMedBench from that folder or the model hub; the others only the user can provide.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial

from medjax.assets import ORIGINS
from medjax.data.exams import jmed_llm, jmedbench, sources
from medjax.data.exams.definition import PassRule, Task
from medjax.data.exams.rows import Files, Rows

_MINISTRY = "texts by the Ministry of Health, Labour and Welfare of Japan"
_BY = "CC BY 4.0"
_BY_SA = "CC BY-SA 4.0"
_BY_NC_SA = "CC BY-NC-SA 4.0: no commercial use"
# general cuts as announced each March by the Ministry of Health, Labour and Welfare of Japan
_CUTS = {"2018": 208, "2019": 209, "2020": 217, "2021": 209, "2022": 214}
_LICENSING = PassRule(_CUTS)
FURTHER_LICENSING = PassRule(_CUTS | {"2023": 220, "2024": 230, "2025": 221}, sections=frozenset("ABCDEF"))
REQUIRED_LICENSING = ("B", "E")
_NER_METRICS = ("entity_partial_f1", "entity_exact_f1")
_JMED_LLM_NER_METRICS = (*_NER_METRICS, "entity_partial_f1_published")
_TRANSLATION_METRICS = ("bleu", "bleu_sentences", "chrf")
_BLURB = {
    "bc2gm": "genes in abstracts (BLURB)",
    "bc5chem": "chemicals in abstracts (BLURB)",
    "bc5disease": "diseases in abstracts (BLURB)",
    "jnlpba": "molecular biology in abstracts (BLURB)",
    "ncbi_disease": "diseases in abstracts (BLURB)",
}
_AS_PUBLISHED = "asked and graded as nii-nlp/med-eval does, for comparison with its tables; docs/exams.md"


def _commit(name: str) -> str:
    return f"github.com/{ORIGINS[name].repo}@{ORIGINS[name].commit[:12]}"


def _jmedbench(
    name: str,
    config: str,
    read: Callable[..., Rows],
    what: str,
    metrics: tuple[str, ...] = (),
    *,
    language: str = "ja",
    remark: str = "",
    licence: str = "that of the set it was made from, see its hub page",
) -> Task:
    return Task(
        *(name, (language,), partial(read, name=config)),
        split=what,
        remark=remark,
        licence=licence,
        origin=f"huggingface.co/datasets/{jmedbench.HUB_ID}, {config}",
        hub=config,
        metrics=metrics,
    )


_TRAINED_ON = (
    "the translated test split is known to be in the training data of some Japanese models (MedSwallow-70B): their "
    "scores on it say nothing"
)
_NOT_PUBLIC = "It is not public: ask its authors, then put it there, in the schema of japanese-lm-med-harness."
_HARNESS = "github.com/stardust-coder/japanese-lm-med-harness names it; not public"


def _into(language: str) -> Callable[..., Rows]:
    def read(files: Files, asked: str, *, name: str) -> Rows:
        return jmedbench.translation(files, asked, name=name, into=language)

    return read


_SHIPPED = (
    Task(
        *("mini", ("ja", "en"), partial(sources.exam_file, path=sources.EXAMS / "mini_{language}.jsonl")),
        split="the exam that ships with medjax; its cuts are modelled on the licensing exams",
        required_sections=("required",),
        pass_rule=PassRule(general_share=Fraction(7, 10)),
        licence="Apache-2.0",
        origin="written for medjax",
    ),
)

_LICENSING_EXAMS = (
    Task(
        *("igakuqa", ("ja", "en"), sources.igakuqa),
        split="physician licensing exams 2018 to 2022, all 2,000 questions; English by machine translation",
        files=tuple(f"igakuqa/{file}" for file in sources.igakuqa_files("ja")),
        years=tuple(_CUTS),
        required_sections=REQUIRED_LICENSING,
        pass_rule=_LICENSING,
        licence=f"none stated; exam {_MINISTRY}",
        origin=_commit("igakuqa"),
    ),
    Task(
        *("denqa", ("ja",), partial(sources.benchmark, file="denqa.jsonl")),
        split="dentist licensing exams 116 and 117, 699 of 720 questions",
        files=("medllm_qa_benchmark/denqa.jsonl",),
        years=("116", "117"),
        licence=f"repository MIT; exam {_MINISTRY}",
        origin=_commit("medllm_qa_benchmark"),
    ),
    Task(
        *("yakugakuqa", ("ja",), sources.yakugakuqa),
        split="pharmacist licensing exams 2012 to 2024, those of 4,485 questions whose choices are texts",
        files=tuple(f"yakugakuqa/{file}" for file in sources.YAKUGAKUQA_FILES),
        years=tuple(map(str, range(2012, 2025))),
        remark="text_only marks what can be answered without a figure",
        licence=f"{_BY_SA} on the model hub, none stated in the repository; exam {_MINISTRY}",
        origin=_commit("yakugakuqa"),
    ),
)

_JMED_LLM = (
    Task(
        *("jmmlu-medical", ("ja",), partial(jmed_llm.jmmlu, file="all/JMMLU-Med.csv")),
        split="five medical subjects, 681 questions",
        files=("jmed-llm/all/JMMLU-Med.csv",),
        licence=_BY_SA,
        origin=_commit("jmed-llm"),
        metrics=("accuracy", "kappa"),
    ),
    Task(
        *("jmmlu-medical-11", ("ja",), jmed_llm.jmmlu_folder),
        split="all eleven medical subjects, from a folder of JMMLU's own csv files",
        own_files=tuple(f"JMMLU/{subject}.csv" for subject in jmed_llm.JMMLU_SUBJECTS),
        remark="not checked against a published version; JMMLU states its licence",
        licence=_BY_SA,
        origin="github.com/nlp-waseda/JMMLU, the user's copy",
        metrics=("accuracy", "kappa"),
    ),
    Task(
        *("jmmlu-medical-100", ("ja",), partial(jmed_llm.jmmlu, file="jmmlu_med.csv")),
        split="100 questions of JMED-LLM, 20 a subject; demonstrations from the other 581",
        files=("jmed-llm/jmmlu_med.csv", "jmed-llm/all/JMMLU-Med.csv"),
        licence=_BY_SA,
        origin=_commit("jmed-llm"),
        metrics=("accuracy", "kappa"),
    ),
    Task(
        *("smdis", ("ja",), jmed_llm.smdis),
        split="100 posts of JMED-LLM, 50 yes and 50 no; demonstrations from its other posts, as many of each",
        files=("jmed-llm/smdis.csv", "jmed-llm/all/SMDIS.csv"),
        remark="posts of NTCIR-13 MedWeb, CC BY 4.0",
        licence=_BY,
        origin=_commit("jmed-llm"),
        metrics=("kappa", "accuracy"),
    ),
    Task(
        *("crade", ("ja",), partial(jmed_llm.reports, file="crade.csv", full="all/CRADE.csv")),
        split="100 questions of JMED-LLM: how likely is an adverse drug event, in four grades",
        files=("jmed-llm/crade.csv", "jmed-llm/all/CRADE.csv"),
        remark="case reports of NTCIR-16 Real-MedNLP MedTxt-CR; demonstrations from other reports",
        licence=_BY,
        origin=_commit("jmed-llm"),
        metrics=("kappa_linear", "accuracy"),
    ),
    Task(
        *("rrtnm", ("ja",), partial(jmed_llm.reports, file="rrtnm.csv", full="all/RRTNM.csv")),
        split="100 questions of JMED-LLM: the T, N or M stage in a radiology report",
        files=("jmed-llm/rrtnm.csv", "jmed-llm/all/RRTNM.csv"),
        remark="reports of NTCIR-17 MedNLP-SC MedTxt-RR; demonstrations from other reports",
        licence=_BY,
        origin=_commit("jmed-llm"),
        metrics=("kappa", "accuracy"),
    ),
    *(
        Task(
            *(name, ("ja",), partial(jmed_llm.entities, file=file, full=full)),
            split=split,
            files=tuple(f"jmed-llm/{each}" for each in (file, *full)),
            remark="NTCIR-16 Real-MedNLP MedTxt-CR and MedTxt-RR",
            licence=_BY,
            origin=_commit("jmed-llm"),
            metrics=_JMED_LLM_NER_METRICS,
        )
        for name, file, full, split in (
            (
                *("mrner-disease", "mrner_disease.csv", ("all/CRNER.csv", "all/RRNER.csv")),
                "100 reports of JMED-LLM: which findings does the patient have; demonstrations from other reports",
            ),
            (
                *("mrner-medicine", "mrner_medicine.csv", ("all/CRNER.csv",)),
                "100 questions of JMED-LLM: which medicines or doses are named; demonstrations from other reports",
            ),
            ("crner", "all/CRNER.csv", (), "265 questions about case reports; mrner-disease and -medicine are in it"),
            ("rrner", "all/RRNER.csv", (), "72 radiology reports; half of mrner-disease is in it"),
        )
    ),
    Task(
        *("nrner", ("ja",), jmed_llm.nrner),
        split="nursing records of JMED-LLM: findings and medicines",
        own_files=("jmed-llm/nrner.csv",),
        licence=_BY_NC_SA,
        origin="github.com/sociocom/JMED-LLM, the user's copy",
        metrics=_JMED_LLM_NER_METRICS,
    ),
    Task(
        *("jcsts", ("ja",), jmed_llm.jcsts),
        split="pairs of sentences of JMED-LLM: how alike, in six grades",
        own_files=("jmed-llm/jcsts.csv",),
        licence=_BY_NC_SA,
        origin="github.com/sociocom/JMED-LLM, the user's copy",
        metrics=("kappa_linear", "accuracy"),
    ),
)

_ENGLISH = (
    Task(
        *("medqa", ("en",), partial(sources.benchmark, file="medqa_en.jsonl")),
        split="MedQA-USMLE test, 1,273 questions with 5 choices",
        files=("medllm_qa_benchmark/medqa_en.jsonl",),
        licence="MIT",
        origin=_commit("medllm_qa_benchmark"),
    ),
    Task(
        *("medqa-4op", ("en",), partial(sources.benchmark, file="medqa_en_4op.jsonl")),
        split="MedQA-USMLE test, the same 1,273 questions with 4 choices",
        files=("medllm_qa_benchmark/medqa_en_4op.jsonl",),
        licence="MIT",
        origin=_commit("medllm_qa_benchmark"),
    ),
    Task(
        *("medmcqa", ("en",), partial(sources.benchmark, file="medmcqa.jsonl")),
        split="MedMCQA validation, 4,183 questions",
        files=("medllm_qa_benchmark/medmcqa.jsonl",),
        licence="MIT",
        origin=_commit("medllm_qa_benchmark"),
    ),
    Task(
        *("pubmedqa", ("en",), sources.pubmedqa),
        split="PubMedQA labelled test, 500 questions with abstract; demonstrations from the 500 others",
        files=("medllm_qa_benchmark/pubmedqa.jsonl", "pubmedqa/ori_pqal.json"),
        licence="MIT",
        origin=f"{_commit('medllm_qa_benchmark')}, {_commit('pubmedqa')}",
        metrics=("accuracy", "f1_macro"),
    ),
    Task(
        *("pubmedqa-conclusion", ("en",), sources.pubmedqa_conclusion),
        split="PubMedQA labelled test, 500 questions with the conclusion; demonstrations from the 500 others",
        files=("medllm_qa_benchmark/pubmedqa.jsonl", "pubmedqa/ori_pqal.json"),
        licence="MIT",
        origin=f"{_commit('medllm_qa_benchmark')}, {_commit('pubmedqa')}",
        metrics=("accuracy", "f1_macro"),
    ),
    Task(
        *("mmlu-medical", ("en",), partial(sources.benchmark, file="mmlu_en_medical.jsonl")),
        split="medical subjects of MMLU test, 1,089 questions",
        files=("medllm_qa_benchmark/mmlu_en_medical.jsonl",),
        licence="MIT",
        origin=_commit("medllm_qa_benchmark"),
    ),
)

_JMEDBENCH = (
    _jmedbench("medqa-ja", "medqa_jp", jmedbench.choices, "MedQA-USMLE, Japanese, 5 choices", remark=_TRAINED_ON),
    _jmedbench("usmle-ja", "usmleqa_jp", jmedbench.choices, "MedQA-USMLE, Japanese, 4 choices", remark=_TRAINED_ON),
    _jmedbench("medmcqa-ja", "medmcqa_jp", jmedbench.choices, "MedMCQA in Japanese"),
    _jmedbench("pubmedqa-ja", "pubmedqa_jp", jmedbench.choices, "PubMedQA in Japanese", ("accuracy", "f1_macro")),
    _jmedbench("mmlu-medical-ja", "mmlu_medical_jp", jmedbench.choices, "medical subjects of MMLU in Japanese"),
    *(
        _jmedbench(f"{name}-ja", f"{name}_jp", jmedbench.entities, f"{what}, in Japanese", _NER_METRICS)
        for name, what in _BLURB.items()
    ),
    *(
        _jmedbench(
            *(f"{name}-ja-published", f"{name}_jp", jmedbench.as_published, f"{what}, in Japanese, as a line of text"),
            ("entity_first_line_f1",),
            remark=_AS_PUBLISHED,
        )
        for name, what in _BLURB.items()
    ),
    _jmedbench(
        *("jcsts-similarity", "jcsts", jmedbench.similarity, "pairs of clinical sentences: how alike, from 0 to 5"),
        metrics=("pearson", "spearman", "mae"),
        licence=_BY_NC_SA,
    ),
    _jmedbench(
        *("jcsts-similarity-published", "jcsts", jmedbench.graded, "the same pairs, as a choice of the grades 0 to 5"),
        metrics=("grade_pearson", "accuracy"),
        licence=_BY_NC_SA,
        remark=f"{_AS_PUBLISHED}, with --protocol choice-logprob",
    ),
    _jmedbench("ejmmt-en-ja", "ejmmt", _into("japanese"), "medical sentences into Japanese", _TRANSLATION_METRICS),
    _jmedbench(
        *("ejmmt-ja-en", "ejmmt", _into("english"), "medical sentences into English", _TRANSLATION_METRICS),
        language="en",
    ),
)

_OF_THE_USER = tuple(
    Task(
        *(
            name,
            ("ja", "en"),
            partial(sources.harness_file, set_name="harness", file=f"{name}.jsonl", how=_NOT_PUBLIC),
        ),
        split=what,
        own_files=(f"harness/{name}.jsonl",),
        licence="its authors'",
        origin=_HARNESS,
        metrics=metrics,
    )
    for name, what, metrics in (
        ("clinicalqa25", "25 open clinical questions, for people to judge; chrF is a hint only", ("chrf",)),
        ("cardioexam", "specialist exam in cardiology", ()),
    )
)

TASKS = {task.name: task for task in (*_SHIPPED, *_LICENSING_EXAMS, *_JMED_LLM, *_ENGLISH, *_JMEDBENCH, *_OF_THE_USER)}

# every set of a language, each question once: without the 4-choice editions of MedQA, the small edition of medical
# JMMLU, what is asked as published a second time, and the full sets that hold a smaller one
GROUPS: dict[str, tuple[str, ...]] = {
    "japanese-medical": (
        *("igakuqa:ja", "denqa", "yakugakuqa", "jmmlu-medical"),
        *("crade", "rrtnm", "smdis", "mrner-disease", "mrner-medicine", "nrner", "jcsts"),
        *("medqa-ja", "medmcqa-ja", "pubmedqa-ja", "mmlu-medical-ja"),
        *("bc2gm-ja", "bc5chem-ja", "bc5disease-ja", "jnlpba-ja", "ncbi_disease-ja"),
        *("jcsts-similarity", "ejmmt-en-ja", "ejmmt-ja-en", "clinicalqa25:ja", "cardioexam:ja"),
    ),
    "english-medical": ("igakuqa:en", "medqa", "medmcqa", "pubmedqa", "mmlu-medical"),
}
