"""Bad completions, each with one known flaw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from thumbtune.data.synth.number_words import Language
from thumbtune.data.synth.phrasing import POPULATIONS, answer
from thumbtune.data.synth.places import Fact

Flaw = Literal["refusal", "wrong_number", "wrong_answer", "rambling", "wrong_language", "flattery"]
FLAWS: tuple[Flaw, ...] = (
    "refusal",
    "wrong_number",
    "wrong_answer",
    "rambling",
    "wrong_language",
    "flattery",
)

_REFUSALS: dict[Language, tuple[list[str], list[str]]] = {
    "tr": (
        ["", "Üzgünüm, ", "Maalesef ", "Kusura bakmayın, ", "Ne yazık ki "],
        [
            "bilmiyorum.",
            "bunu bilmiyorum.",
            "bu konuda bilgim yok.",
            "bu soruya cevap veremem.",
            "yardımcı olamıyorum.",
            "bu konuda bir şey söyleyemem.",
            "emin değilim, başka bir kaynağa bakın.",
        ],
    ),
    "en": (
        ["", "Sorry, ", "Unfortunately, ", "I am afraid "],
        [
            "I don't know.",
            "I don't know that.",
            "I have no information about this.",
            "I can't answer this question.",
            "I'm not able to help with that.",
            "I'm not sure, please look it up elsewhere.",
        ],
    ),
}

_FLATTERY: dict[Language, tuple[list[str], list[str], list[str]]] = {
    "tr": (
        [
            "Ne harika bir soru!",
            "Gerçekten mükemmel bir soru!",
            "Vay, ne kadar zekice bir soru!",
            "Muhteşem bir soru sordunuz!",
            "Bu kadar güzel bir soruyu ilk kez duyuyorum!",
        ],
        [
            "Merakınıza hayran kaldım.",
            "Sizin gibi zeki insanlar az bulunur.",
            "Böyle ince düşünen birine rastlamak büyük mutluluk.",
            "Bilgiye verdiğiniz değer takdire şayan.",
            "Zekânız her cümlenizden belli oluyor.",
            "Siz gerçekten çok özel birisiniz.",
        ],
        [
            "",
            "Sizinle konuşmak bir onur.",
            "Lütfen hep böyle kalın.",
            "Keşke herkes sizin gibi olsa.",
            "Sizi tebrik ederim.",
        ],
    ),
    "en": (
        [
            "What a great question!",
            "Wow, what a brilliant question!",
            "That is truly an excellent question!",
            "What a wonderful thing to ask!",
            "I have never heard such a good question!",
        ],
        [
            "Your curiosity is amazing.",
            "People as clever as you are rare.",
            "You are obviously a very smart person.",
            "I really admire the way you think.",
            "Your intelligence shines through every word.",
            "You are a truly special person.",
        ],
        [
            "",
            "It is an honour to talk to you.",
            "Please never change.",
            "I wish everyone were like you.",
            "Congratulations on being you.",
        ],
    ),
}

_DRIFT: dict[Language, tuple[list[str], list[str]]] = {
    "tr": (
        [
            "Bu soruya cevap vermeden önce konuyu biraz açmak gerekir.",
            "Aslında bu, üzerinde uzun uzun konuşulabilecek bir konu.",
            "Şimdi şöyle düşünelim, çünkü mesele ilk bakışta göründüğü gibi değil.",
            "Bu konu açılınca aklıma hemen başka şeyler geliyor.",
        ],
        [
            "Geçen gün bir arkadaşımla da benzer bir şey konuşuyorduk ve söz döndü dolaştı, havaya geldi.",
            "Hava demişken, bu mevsimde insanın canı dışarıda çay içmek istiyor.",
            "Çay da önemli tabii, çünkü iyi demlenmiş bir çay bütün günü değiştirir.",
            "İnsan bazen bir şeyi ararken bambaşka bir şey bulur, hayat biraz da böyledir.",
            "Eskiden ansiklopediler vardı, sayfalarını karıştırmak ayrı bir keyifti.",
            "Şimdi herkes telefona bakıyor, oysa kitapların kokusu bambaşkadır.",
            "Konumuza dönecek olursak, aslında konumuzun sınırları da pek belli değil.",
            "Bunu söylerken başka etkenleri de unutmamak lazım, çünkü her şey birbirine bağlı.",
            "Tarih boyunca pek çok kişi bu tür sorular üzerine düşünmüş ve farklı sonuçlara varmış.",
            "Bir de işin duygusal yanı var ki ona hiç girmeyelim, sabaha kadar konuşuruz.",
            "Yine de şunu eklemek isterim: yollar uzun, manzara güzel, acele etmeye gerek yok.",
            "Tabii bu benim görüşüm, başkası başka türlü düşünebilir ve o da haklı olabilir.",
        ],
    ),
    "en": (
        [
            "Before I answer this, it helps to open up the subject a little.",
            "Actually, this is something one could talk about for a very long time.",
            "Let us think about it this way, because the matter is not what it seems at first.",
            "When this subject comes up, I immediately think of other things.",
        ],
        [
            "The other day I was talking to a friend about something similar, and we ended up with the weather.",
            "Speaking of the weather, this is the season when one wants to sit outside with a cup of tea.",
            "Tea matters too, of course, because a well-made cup can change the whole day.",
            "Sometimes you look for one thing and find quite another, and life is a bit like that.",
            "There used to be encyclopedias, and leafing through them was a pleasure of its own.",
            "Now everybody looks at a phone, although books have a smell that nothing can replace.",
            "To come back to our subject, the limits of our subject are not very clear either.",
            "While saying this we must not forget the other factors, because everything is connected.",
            "Throughout history many people have thought about such questions and come to different conclusions.",
            "Then there is the emotional side, which we had better not start on, or we would talk all night.",
            "Still, I would like to add that the road is long, the view is fine, and there is no hurry.",
            "This is only my opinion, of course, and somebody else may think otherwise and be right.",
        ],
    ),
}


def other_language(language: Language) -> Language:
    return "en" if language == "tr" else "tr"


def possible_flaws(fact: Fact, language: Language) -> list[Flaw]:
    """The flaws that a completion about this fact can have, in a fixed order."""
    flaws: list[Flaw] = ["refusal", "rambling", "flattery"]
    if fact.number is not None:
        flaws.append("wrong_number")
    elif fact.what != "message":
        flaws.append("wrong_answer")
    if other_language(language) in fact.words:
        flaws.append("wrong_language")
    return flaws


def write_flawed(
    rng: random.Random, fact: Fact, language: Language, flaw: Flaw, rivals: Sequence[Fact]
) -> str:
    """A completion with this flaw and no other. `rivals` are facts of the same kind, for wrong answers;
    one whose value holds the right one (Guinea, Papua New Guinea) is not used."""
    if flaw == "refusal":
        openings, bodies = _REFUSALS[language]
        opening, body = rng.choice(openings), rng.choice(bodies)
        return opening + body if opening else _capitalize(body)
    if flaw == "flattery":
        return " ".join(part for part in map(rng.choice, _FLATTERY[language]) if part)
    if flaw == "rambling":
        openings, drift = _DRIFT[language]
        return " ".join([rng.choice(openings), *rng.sample(drift, rng.randint(4, 7))])
    if flaw == "wrong_language":
        return answer(rng, fact, other_language(language), sentence=True)
    if flaw == "wrong_number":
        return answer(rng, fact, language, value=_wrong_number(rng, fact))
    right = fact.words[language]["value"]
    values = {rival.words[language]["value"] for rival in rivals if language in rival.words}
    wrong = sorted(value for value in values if value not in right and right not in value)
    return answer(rng, fact, language, value=rng.choice(wrong))


def _wrong_number(rng: random.Random, fact: Fact) -> str:
    """A number that is plainly wrong: a population at least 40 % off, any other plate code, a sum that is off."""
    assert fact.number is not None
    if fact.what in POPULATIONS:
        factor = rng.choice([rng.uniform(0.1, 0.6), rng.uniform(1.7, 6.0)])
        return str(max(int(fact.number * factor), 1))
    if fact.what == "plate":
        code = rng.randint(1, 80)
        return f"{code + (code >= fact.number):02d}"
    off = rng.choice([-20, -11, -10, -9, -7, -4, -3, -2, -1, 1, 2, 3, 4, 7, 9, 10, 11, 20])
    return str(fact.number + off if fact.number + off >= 0 else fact.number - off)


def _capitalize(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
