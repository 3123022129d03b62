"""What a run says before its work: options that change nothing in it, and templates that hide what is asked for."""

from collections.abc import Iterable, Sequence

from medjax.eval.asking import Evaluation
from medjax.eval.protocols import Protocol
from medjax.eval.settings import EvalSettings, ProtocolSettings

_USUAL = ProtocolSettings()


def notes(settings: EvalSettings, evaluations: Sequence[Evaluation]) -> list[str]:
    """One line for the user each; none where there is nothing to say."""
    protocols = [evaluation.protocol for evaluation in evaluations]
    return [*_without_effect(settings, protocols), *_letterless(evaluations)]


def _without_effect(settings: EvalSettings, protocols: Iterable[Protocol]) -> list[str]:
    every = list(protocols)
    p = settings.protocol
    generates, reasons = any(one.generates for one in every), any(one.reasons for one in every)
    scores = not all(one.generates for one in every)
    names = ", ".join(dict.fromkeys(one.name for one in every))
    nothing_written, nothing_scored = f"{names} writes nothing", f"{names} scores no choices"
    found = (
        (f"--kv-cache {settings.model.kv_cache}", settings.model.kv_cache and not generates, nothing_written),
        (f"--max-new-tokens {p.max_new_tokens}", p.max_new_tokens and not generates, nothing_written),
        (
            f"--protocol.think_tokens {p.think_tokens}",
            p.think_tokens != _USUAL.think_tokens and not reasons,
            "only cot reasons first",
        ),
        (
            f"--protocol.continuation {p.continuation}",
            p.continuation != _USUAL.continuation and not scores,
            nothing_scored,
        ),
        (f"--protocol.normalise {p.normalise}", p.normalise != _USUAL.normalise and not scores, nothing_scored),
        (f"--protocol.top_p {p.top_p:g}", p.top_p < 1 and not p.temperature, "nothing is drawn at temperature 0"),
        (f"--protocol.fewshot {p.fewshot}", p.fewshot and not p.num_fewshot, "--num-fewshot is 0"),
    )
    return [f"note: {option} has no effect: {why}" for option, holds, why in found if holds]


def _letterless(evaluations: Iterable[Evaluation]) -> list[str]:
    """Of every template the first item whose choices stand in the prompt without the letters that are asked for."""
    found: dict[str, str] = {}
    for evaluation in evaluations:
        protocol = evaluation.protocol
        for template in protocol.templates if protocol.picks_letters else ():
            for item in evaluation.items:
                if item.kind == "choice" and template.name not in found and not template.shows_letters(item):
                    found[template.name] = (
                        f"note: {template.name}: task {evaluation.task.name}: item {item.id}: the choices stand in the "
                        f"prompt without their letters, and {protocol.name} reads letters only; write a line for each: "
                        "{% for letter in letters %}{{letter}}. {{choices[loop.index0]}}{{'\\n'}}{% endfor %}"
                    )
    return list(found.values())
