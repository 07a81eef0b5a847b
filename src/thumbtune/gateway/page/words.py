"""Every word that the page says, in one table a language; canary and loop have theirs in `loop_words`.

Users' texts and model versions are nobody's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from thumbtune.errors import StoreError
from thumbtune.gateway.page.loop_words import LOOP_ENGLISH, LOOP_TURKISH
from thumbtune.gateway.problems import Problem

ENGLISH: dict[str, str] = {
    "language": "English",
    "title": "thumbtune",
    "tagline": "Your 👍 and 👎 make the next model.",
    "sign_out": "Sign out",
    "page_language": "Language",
    # chat
    "chat": "Chat",
    "conversation": "Conversation",
    "begin": "Ask something, then press 👍 or 👎 on the answer.",
    "message": "Message",
    "message_hint": "Write a message. Enter sends, Shift+Enter starts a new line.",
    "send": "Send",
    "stop": "Stop",
    "new_conversation": "New conversation",
    "stopped": "Stopped before the first word.",
    "no_answer": "The model gave no text.",
    "is_answering": "An answer is still being written: wait for its end, or stop it.",
    "not_votable": "This answer was not stored, so it cannot be voted on.",
    # why
    "why": "Why?",
    "why_up": "👍 What was good about “{answer}”?",
    "why_down": "👎 What was wrong with “{answer}”?",
    "comment": "Comment",
    "comment_hint": "Optional; Enter saves it.",
    "save": "Save",
    "correct": "Correct",
    "clear": "Clear",
    "helpful": "Helpful",
    "well_written": "Well written",
    "wrong": "Wrong",
    "incomplete": "Incomplete",
    "too_long": "Too long",
    "off_topic": "Off topic",
    "unsafe": "Unsafe",
    "other": "Other",
    "vote_recorded": "Vote saved. Thank you.",
    "vote_changed": "Vote changed.",
    "vote_retracted": "Vote taken back.",
    "vote_repeated": "This vote was saved already.",
    "vote_unchanged": "Nothing has changed.",
    "edit_answer": "Edit the text",
    "edit_saved": "Your version is saved.",
    "edit_empty": "An edited answer cannot be empty.",
    # votes
    "votes": "Votes",
    "own_votes": "You see your own votes.",
    "all_votes": "You see everyone's votes.",
    "thumb": "Thumb",
    "kind": "Kind",
    "version": "Model version",
    "reason": "Reason",
    "since": "Since",
    "comment_text": "Comment or correction has",
    "any": "All",
    "days_1": "1 day",
    "days_7": "7 days",
    "days_30": "30 days",
    "days_365": "1 year",
    "explicit": "Pressed",
    "edit": "Edited",
    "retry": "Retried",
    "copy": "Copied",
    "number": "No.",
    "time": "Time (UTC)",
    "question": "Question",
    "answer": "Answer",
    "newer": "Newer",
    "older": "Older",
    "shown": "{n} votes, page {page}",
    "no_votes": "No votes match.",
    "select_a_vote": "Select a row to see its conversation and every press on it.",
    "erased": "(erased)",
    "correction": "Correction",
    "presses": "Presses",
    "taken_back": "taken back",
    "role_user": "User",
    "role_assistant": "Assistant",
    "role_system": "System",
    "role_tool": "Tool",
    # models
    "models": "Models",
    "in_service": "in service",
    "loaded": "loaded",
    "parent": "Parent",
    "snapshot": "Snapshot",
    "up": "👍",
    "down": "👎",
    "completions": "Answers",
    "up_rate": "Up-rate, 95 % interval",
    "rate": "{mean} % ({low}–{high} %)",
    "no_rate": "no votes yet",
    "lineage": "Lineage",
    "no_versions": "No model version is known yet.",
    "base": "base",
    "adapter": "adapter",
    "upstream": "upstream",
    "change_model": "Change the model in service",
    "choose_version": "Loaded version",
    "promote": "Put in service",
    "go_back": "Go back to the previous one",
    "confirm_promote": "Put “{version}” in service? Every new answer comes from it.",
    "confirm_back": "Go back to “{version}”? Every new answer comes from it.",
    "confirm": "Yes, change it",
    "cancel": "Cancel",
    "now_in_service": "In service now: “{version}”",
    "choose_first": "Choose a version first.",
    "is_in_service": "This version is in service already.",
    "refresh": "Refresh",
    # live
    "live": "Live",
    "live_hint": "Refreshed every 2 seconds while this tab is open.",
    "serving": "In service",
    "ready": "Ready",
    "yes": "yes",
    "no": "no",
    "uptime": "Running for",
    "uptime_value": "{hours} h {minutes} min {seconds} s",
    "writes_waiting": "Writes waiting for the disk",
    "answers_since": "Answers since the start",
    "up_since": "👍 since the start",
    "down_since": "👎 since the start",
    "rows": "Answers being written",
    "waiting": "Chats waiting",
    "in_flight": "Chats at the upstream",
    "tokens_per_second": "Tokens per second",
    # troubles
    "trouble": "That did not work: {message}",
    "trouble_internal": "A fault of ours: it is in the log. Try again, or tell whoever runs this.",
    "trouble_invalid": "This text cannot be stored: it is too long, or holds a character that no database can hold.",
    "trouble_store": "The votes' store cannot be reached now: nothing was saved. Try again in a moment.",
    "trouble_busy": "Too much is going on at once: try again in a moment.",
    "trouble_rate_limit_exceeded": "You have reached the limit for now: try again in a minute.",
    "trouble_wrong_role": "Your key may not do this.",
    "trouble_signed_out": "Your session has ended: sign in again.",
    "trouble_completion_not_found": "This answer is not known, or it is not yours.",
    "trouble_version_not_loaded": "This version is not loaded here: load it first.",
    "trouble_no_way_back": "There is no earlier model to go back to.",
    "trouble_no_canary": "This canary runs no longer.",
    "trouble_upstream": "The model's server broke off or did not answer: try again.",
}

TURKISH: dict[str, str] = {
    "language": "Türkçe",
    "title": "thumbtune",
    "tagline": "Bir sonraki modeli sizin 👍 ve 👎 oylarınız yapar.",
    "sign_out": "Oturumu kapat",
    "page_language": "Dil",
    "chat": "Sohbet",
    "conversation": "Konuşma",
    "begin": "Bir şey sorun, sonra yanıta 👍 veya 👎 verin.",
    "message": "Mesaj",
    "message_hint": "Bir mesaj yazın. Enter gönderir, Shift+Enter yeni satıra geçer.",
    "send": "Gönder",
    "stop": "Durdur",
    "new_conversation": "Yeni konuşma",
    "stopped": "İlk sözcükten önce durduruldu.",
    "no_answer": "Model bir metin üretmedi.",
    "is_answering": "Yanıt hâlâ yazılıyor: bitmesini bekleyin ya da durdurun.",
    "not_votable": "Bu yanıt kaydedilmediği için oylanamaz.",
    "why": "Neden?",
    "why_up": "👍 “{answer}” yanıtının nesi iyiydi?",
    "why_down": "👎 “{answer}” yanıtının nesi kötüydü?",
    "comment": "Yorum",
    "comment_hint": "İsteğe bağlı; Enter kaydeder.",
    "save": "Kaydet",
    "correct": "Doğru",
    "clear": "Anlaşılır",
    "helpful": "Yararlı",
    "well_written": "İyi yazılmış",
    "wrong": "Yanlış",
    "incomplete": "Eksik",
    "too_long": "Çok uzun",
    "off_topic": "Konu dışı",
    "unsafe": "Sakıncalı",
    "other": "Diğer",
    "vote_recorded": "Oyunuz kaydedildi. Teşekkürler.",
    "vote_changed": "Oyunuz değiştirildi.",
    "vote_retracted": "Oyunuz geri alındı.",
    "vote_repeated": "Bu oy zaten kaydedilmişti.",
    "vote_unchanged": "Değişen bir şey yok.",
    "edit_answer": "Metni düzenle",
    "edit_saved": "Düzeltmeniz kaydedildi.",
    "edit_empty": "Düzenlenen yanıt boş olamaz.",
    "votes": "Oylar",
    "own_votes": "Kendi oylarınızı görüyorsunuz.",
    "all_votes": "Herkesin oylarını görüyorsunuz.",
    "thumb": "Oy",
    "kind": "Tür",
    "version": "Model sürümü",
    "reason": "Neden",
    "since": "Zaman aralığı",
    "comment_text": "Yorum veya düzeltmede",
    "any": "Tümü",
    "days_1": "Son 1 gün",
    "days_7": "Son 7 gün",
    "days_30": "Son 30 gün",
    "days_365": "Son 1 yıl",
    "explicit": "Oy verildi",
    "edit": "Düzenlendi",
    "retry": "Yeniden istendi",
    "copy": "Kopyalandı",
    "number": "No",
    "time": "Zaman (UTC)",
    "question": "Soru",
    "answer": "Yanıt",
    "newer": "Daha yeni",
    "older": "Daha eski",
    "shown": "{n} oy, sayfa {page}",
    "no_votes": "Eşleşen oy yok.",
    "select_a_vote": "Konuşmayı ve tüm oy geçmişini görmek için bir satır seçin.",
    "erased": "(silindi)",
    "correction": "Düzeltme",
    "presses": "Oy geçmişi",
    "taken_back": "geri alındı",
    "role_user": "Kullanıcı",
    "role_assistant": "Asistan",
    "role_system": "Sistem",
    "role_tool": "Araç",
    "models": "Modeller",
    "in_service": "hizmette",
    "loaded": "yüklü",
    "parent": "Üst sürüm",
    "snapshot": "Veri kümesi",
    "up": "👍",
    "down": "👎",
    "completions": "Yanıt",
    "up_rate": "👍 oranı, %95 güven aralığı",
    "rate": "%{mean} (%{low}–%{high})",
    "no_rate": "henüz oy yok",
    "lineage": "Soy ağacı",
    "no_versions": "Henüz bilinen bir model sürümü yok.",
    "base": "temel",
    "adapter": "adaptör",
    "upstream": "dış sunucu",
    "change_model": "Hizmetteki modeli değiştir",
    "choose_version": "Yüklü sürüm",
    "promote": "Hizmete al",
    "go_back": "Öncekine dön",
    "confirm_promote": "“{version}” hizmete alınsın mı? Yeni yanıtların hepsi ondan gelir.",
    "confirm_back": "“{version}” sürümüne dönülsün mü? Yeni yanıtların hepsi ondan gelir.",
    "confirm": "Evet, değiştir",
    "cancel": "Vazgeç",
    "now_in_service": "Şu an hizmette: “{version}”",
    "choose_first": "Önce bir sürüm seçin.",
    "is_in_service": "Bu sürüm zaten hizmette.",
    "refresh": "Yenile",
    "live": "Canlı",
    "live_hint": "Bu sekme açıkken 2 saniyede bir yenilenir.",
    "serving": "Hizmetteki model",
    "ready": "Hazır",
    "yes": "evet",
    "no": "hayır",
    "uptime": "Çalışma süresi",
    "uptime_value": "{hours} sa {minutes} dk {seconds} sn",
    "writes_waiting": "Diske yazılmayı bekleyen kayıt",
    "answers_since": "Başlangıçtan beri yanıt",
    "up_since": "Başlangıçtan beri 👍",
    "down_since": "Başlangıçtan beri 👎",
    "rows": "Yazılmakta olan yanıt",
    "waiting": "Bekleyen sohbet",
    "in_flight": "Dış sunucudaki sohbet",
    "tokens_per_second": "Saniyede token",
    "trouble": "İşlem yapılamadı: {message}",
    "trouble_internal": "Bizden kaynaklanan bir hata: günlüğe yazıldı. Yeniden deneyin ya da yöneticiye bildirin.",
    "trouble_invalid": "Bu metin saklanamaz: ya çok uzun ya da veritabanının saklayamadığı bir karakter içeriyor.",
    "trouble_store": "Oy deposuna şu an ulaşılamıyor: hiçbir şey kaydedilmedi. Birazdan yeniden deneyin.",
    "trouble_busy": "Şu an çok yoğun: birazdan yeniden deneyin.",
    "trouble_rate_limit_exceeded": "Şimdilik sınıra ulaştınız: bir dakika sonra yeniden deneyin.",
    "trouble_wrong_role": "Anahtarınızın buna yetkisi yok.",
    "trouble_signed_out": "Oturumunuz sona erdi: yeniden giriş yapın.",
    "trouble_completion_not_found": "Bu yanıt bilinmiyor ya da size ait değil.",
    "trouble_version_not_loaded": "Bu sürüm burada yüklü değil: önce yükleyin.",
    "trouble_no_way_back": "Geri dönülecek daha eski bir model yok.",
    "trouble_no_canary": "Bu kanarya artık çalışmıyor.",
    "trouble_upstream": "Modelin sunucusu yanıtı yarıda kesti ya da yanıt vermedi: yeniden deneyin.",
}

LANGUAGES: dict[str, dict[str, str]] = {"en": ENGLISH | LOOP_ENGLISH, "tr": TURKISH | LOOP_TURKISH}
"""The first one is spoken to whoever asks for none of them."""

REASONS: Mapping[bool, tuple[str, ...]] = {
    True: ("correct", "clear", "helpful", "well_written", "other"),
    False: ("wrong", "incomplete", "too_long", "off_topic", "unsafe", "other"),
}
"""What a thumb can be pressed for; stored as it stands here, in every language."""

KINDS = ("explicit", "edit", "retry", "copy")


class Words:
    """One language: `words["send"]`, `words.say("shown", n=3, page=1)`, `words.explain(problem)`."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._table = LANGUAGES[language]

    def __getitem__(self, name: str) -> str:
        return self._table[name]

    def find(self, name: str, of: str | None = None) -> str:
        """The word for a name that comes from elsewhere, of some kind of names, or the name itself."""
        return self._table.get(name if of is None else f"{of}_{name}", name)

    def say(self, name: str, **parts: Any) -> str:
        """A sentence with its parts filled in."""
        return self._table[name].format(**parts)

    def explain(self, error: Exception) -> str:
        """What went wrong, for the person at the page; never a traceback."""
        if isinstance(error, StoreError):
            return self["trouble_store"]
        if isinstance(error, ValidationError):
            return self["trouble_invalid"]
        if not isinstance(error, Problem):
            return self["trouble_internal"]
        known = self._table.get(f"trouble_{error.code}")
        return known or self.say("trouble", message=error.message)


def choose_language(cookie: str | None, accept_language: str) -> str:
    """The language that was chosen before, or else the first that the browser asks for and the page speaks."""
    if cookie in LANGUAGES:
        return cookie
    asked = []
    for place, part in enumerate(accept_language.split(",")):
        tag, _, quality = part.partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        asked.append((-weight, place, tag.strip().lower().split("-")[0]))
    return next((tag for _, _, tag in sorted(asked) if tag in LANGUAGES), next(iter(LANGUAGES)))
