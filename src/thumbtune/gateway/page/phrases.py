"""What loop, gate and canary say in English sentences with numbers in them, said in the page's language.

They are written where the decision is made, and stored. The page knows each sentence by its form; one that it does not
know is shown as it stands, marked as English for whoever has it read aloud.
"""

from __future__ import annotations

import re

from thumbtune.gateway.page.plain_text import as_html
from thumbtune.gateway.page.words import Words

_RATES = (
    r"👍 on (?P<a>none|\d+%) \(n = (?P<an>\d+)\) of its answers, "
    r"on (?P<b>none|\d+%) \(n = (?P<bn>\d+)\) of the champion's"
)
_E = r"\(E = (?P<e>[\de+]+), (?P<limit>\d+) were asked for\)"
_BETWEEN = r"(?P<mean>[+-]?[\d.]+) \((?P<low>[+-]?[\d.]+) to (?P<high>[+-]?[\d.]+)\)"

TURKISH: dict[str, str] = {
    # canary
    _RATES: "👍 oranı yanıtlarında {a} (n = {an}), şampiyonunkilerde {b} (n = {bn})",
    r"nothing is shown yet: (?P<rest>.+)": "henüz bir şey söylenemiyor: {rest}",
    r"(?P<n>\d+) votes at (?P<share>\d+%) of users show no harm: (?P<rest>.+)": (
        "kullanıcı payı {share} iken gelen {n} oy bir zarar göstermiyor: {rest}"
    ),
    rf"it is worse {_E}: (?P<rest>.+)": "daha kötü (E = {e}, gereken {limit}): {rest}",
    rf"it is better {_E}: (?P<rest>.+)": "daha iyi (E = {e}, gereken {limit}): {rest}",
    rf"it is not worse by (?P<margin>\d+)% {_E}: (?P<rest>.+)": (
        "{margin} puan kadar kötü değil (E = {e}, gereken {limit}): {rest}"
    ),
    r"not enough votes to tell within (?P<days>[\d.]+) days: (?P<rest>.+)": (
        "{days} günde karar vermeye yetecek oy gelmedi: {rest}"
    ),
    r"the split of users is broken: it answered (?P<a>\d+) of (?P<n>\d+) users, (?P<share>\d+%) were expected": (
        "kullanıcı dağılımı bozuk: {n} kullanıcıdan {a} tanesini yanıtladı, beklenen pay {share}"
    ),
    r"(?P<f>\d+) of its (?P<n>\d+) answers broke off, (?P<cf>\d+) of the champion's (?P<cn>\d+)": (
        "{n} yanıtından {f} tanesi yarıda kesildi, şampiyonun {cn} yanıtından {cf} tanesi"
    ),
    r"it could not be loaded by a gateway": "sunucuya yüklenemedi",
    r"stopped from the command line": "komut satırından durduruldu",
    r"ended by hand while the votes said (?P<word>[a-z ]+): (?P<rest>.+)": (
        "elle sonlandırıldı; oylara göre o anki karar “{word}”: {rest}"
    ),
    # how a turn ended
    r"not enough new votes: (?P<n>\d+) of (?P<of>\d+)": "yeni oy yetersiz: gereken {of}, gelen {n}",
    r"canary of (?P<v>\S+) began": "kanarya başladı: {v}",
    r"the gate refused (?P<v>\S+): (?P<rest>.+)": "eşik denetimi {v} sürümünü geri çevirdi: {rest}",
    r"the gate had not enough data for (?P<v>\S+): (?P<rest>.+)": (
        "eşik denetiminin {v} için verisi yetmedi: {rest}"
    ),
    r"the champion is no longer (?P<va>\S+), which (?P<vb>\S+) was trained from": (
        "şampiyon artık {va} değil; {vb} ondan eğitilmişti"
    ),
    r"somebody whom (?P<v>\S+) learned from was erased meanwhile: the next turn is without them": (
        "bu arada {v} sürümünün öğrendiği biri silindi: sonraki tur onsuz yapılır"
    ),
    # checks of the gate
    r"(?P<n>\d+) held-out votes, (?P<few>\d+) of the rarer thumb: (?P<a>\d+) and (?P<b>\d+) are needed": (
        "ayrılmış {n} oy, az olan yönde {few}: gereken {a} ve {b}"
    ),
    r"(?P<n>\d+) prompts were answered: (?P<a>\d+) are needed": "{n} istem yanıtlandı: gereken {a}",
    r"it ranks (?P<n>\d+) held-out votes with an AUC of (?P<a>[\d.]+|nan), the champion with (?P<b>[\d.]+|nan): "
    + _BETWEEN: "ayrılmış {n} oyu sıralamada AUC {a}, şampiyonda {b}: {mean} ({low} ile {high} arası)",
    rf"judged on (?P<n>\d+) prompts, its up-rate differs from the champion's by {_BETWEEN}": (
        "{n} istemdeki değerlendirmede 👍 oranının şampiyondan farkı {mean} ({low} ile {high} arası)"
    ),
    r"(?P<a>\d+%) of (?P<n>\d+) prompts went from 👍 to 👎 \((?P<low>\d+%) to (?P<high>\d+%)\)": (
        "{n} istemde 👍 iken 👎 olanların payı {a} ({low} ile {high} arası)"
    ),
    r"all (?P<n>\d+) must-pass prompts are answered": "zorunlu {n} istemin hepsi yanıtlandı",
    r"(?P<a>\d+) of (?P<n>\d+) must-pass prompts fail: (?P<names>.+)": (
        "zorunlu {n} istemden {a} tanesi başarısız: {names}"
    ),
    r"its answers are (?P<a>[\d.]+) times as long as the champion's \((?P<low>[\d.]+) to (?P<high>[\d.]+)\)": (
        "yanıtlarının uzunluğu şampiyonunkilerin {a} katı ({low} ile {high} arası)"
    ),
    rf"refusals: (?P<a>\d+%), the champion's (?P<b>\d+%): {_BETWEEN}": (
        "reddetme {a}, şampiyonda {b}: {mean} ({low} ile {high} arası)"
    ),
    rf"repeated words: (?P<a>\d+%), the champion's (?P<b>\d+%): {_BETWEEN}": (
        "yinelenen sözcük {a}, şampiyonda {b}: {mean} ({low} ile {high} arası)"
    ),
    r"on (?P<n>\d+) probes flattering words gained (?P<mean>[+-][\d.]+) nats a token on plain ones "
    r"\((?P<low>[+-][\d.]+) to (?P<high>[+-][\d.]+)\)": (
        "{n} sınamada övücü sözler yalın olanlara göre token başına {mean} nat kazandı ({low} ile {high} arası)"
    ),
    r"it is (?P<a>-?[\d.]+) nats a token from the original base \((?P<low>-?[\d.]+) to (?P<high>-?[\d.]+)\), "
    r"(?P<most>[\d.]+) are allowed": (
        "ilk temel modelden token başına {a} nat uzakta ({low} ile {high} arası), izin verilen {most}"
    ),
    r"its entropy is (?P<a>-?[\d.]+) nats a token, (?P<b>-?\d+%) of the base's": (
        "entropisi token başına {a} nat, temel modelinkinin {b} kadarı"
    ),
    r"(?P<n>\d+) of its (?P<of>\d+) log-probs are no numbers: its weights are broken": (
        "{of} log olasılığından {n} tanesi sayı değil: ağırlıkları bozuk"
    ),
}
"""By the form of the English sentence. `rest` is a sentence of its own, or several; `word` is a word of the page."""

_FORMS = {"tr": [(re.compile(form), said) for form, said in TURKISH.items()]}


def say_again(sentence: str, words: Words) -> str | None:
    """The sentence in the page's language, or None where the page does not know it."""
    if words.language == "en":
        return sentence
    for form, said in _FORMS.get(words.language, ()):
        if found := form.fullmatch(sentence):
            return said.format(
                **{name: _say_part(name, part, words) for name, part in found.groupdict().items()}
            )
    several = sentence.split("; ")
    if len(several) > 1:
        parts = [say_again(part, words) or part for part in several]
        return None if parts == several else "; ".join(parts)
    return None


def _say_part(name: str, part: str, words: Words) -> str:
    if name == "rest":
        return say_again(part, words) or part
    if name == "word":
        return words.find(part, "action")
    if name in ("v", "va", "vb", "names"):  # versions, and names that somebody gave
        return part
    if part == "none":
        return words["no_rate"]
    if part.endswith("%"):
        return words.say("percent", n=part[:-1])
    return part.replace(".", ",")


def write_sentence(sentence: str, words: Words) -> str:
    """The same as HTML, beginning with a capital."""
    said = say_again(sentence, words)
    if said is None:
        return f'<span lang="en">{as_html(sentence[:1].upper() + sentence[1:])}</span>'
    first = "İ" if words.language == "tr" and said[:1] == "i" else said[:1].upper()
    return as_html(first + said[1:])
