"""Evaluations of a few items, without a model."""

from medjax.data.exams.tasks import LoadedTask
from medjax.data.qa import Item
from medjax.eval.asking import Evaluation, ask
from medjax.eval.demonstrations import Demonstrations
from medjax.eval.protocols import Protocol
from medjax.eval.settings import ProtocolSettings
from medjax.eval.templates import PromptTemplate
from medjax.infer.generator import Generation

FIVE = ("肺炎", "喘息", "肺塞栓", "気胸", "心不全")
ONE = Item("one", "一つはどれか。", FIVE, ("c",), points=3, prohibited=("e",))
TWO = Item("two", "二つはどれか。", FIVE, ("a", "d"))
NUMBER = Item("number", "いくつか。", (), ("7.20",))


def loaded(items, language="ja", name="exam"):
    return LoadedTask(
        **{"name": name, "language": language, "items": tuple(items), "fewshot": tuple(items), "pool_is_test": True},
        **{"digest": "", "files": {}, "required_sections": (), "cuts": {}, "prohibited_max": 0, "exam_sizes": {}},
        **{"dropped": {}, "note": ""},
    )


def evaluation(name, items=(ONE,), *, templates=(), language="ja", chat=None, task="exam", **settings):
    protocol = Protocol(name, ProtocolSettings(**settings), [PromptTemplate(text, file) for file, text in templates])
    made = loaded(items, language, task)
    shots = Demonstrations(made, protocol.settings.num_fewshot, protocol.settings.fewshot)
    return ask(Evaluation(made, protocol, tuple(items), (), unasked=0), shots, chat)


def texts(*outputs, finish="stop"):
    return [Generation((1,), text, finish) for text in outputs]
