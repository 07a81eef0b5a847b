// What Gradio leaves to the page: its own words in the page's language, names for screen readers, a clean clipboard.
// A file and not an inline script, so that the Content-Security-Policy lets it run.
(() => {
  const words = document.currentScript.dataset;
  const { language } = words;
  for (const [name, value] of [["language", language], ["languages", [language]]])
    Object.defineProperty(navigator, name, { get: () => value });

  const MARK = /\u2063/g; // see plain_text.py
  const clipboard = navigator.clipboard;
  if (clipboard) {
    const write = clipboard.writeText.bind(clipboard);
    clipboard.writeText = (text) => write(text.replace(MARK, ""));
  }
  document.addEventListener("copy", (event) => {
    const field = document.activeElement;
    const typed = field && "selectionStart" in field && field.value.slice(field.selectionStart, field.selectionEnd);
    const text = typed || String(getSelection());
    if (!MARK.test(text)) return;
    MARK.lastIndex = 0;
    event.clipboardData.setData("text/plain", text.replace(MARK, ""));
    event.preventDefault();
  });

  // A row of the votes' table: its id goes into a hidden field, whose event asks the server for the details.
  let details = null; // what was shown before the choice
  document.addEventListener("click", (event) => {
    const row = event.target.closest?.("#votes tbody tr");
    const link = row?.querySelector("a[href*='#vote-']");
    const field = document.querySelector("#chosen-vote :is(textarea, input)");
    if (!link || !field) return;
    event.preventDefault();
    for (const other of row.parentElement.children) other.removeAttribute("aria-current");
    row.setAttribute("aria-current", "true");
    details = document.querySelector("#details .vote") ?? false;
    field.value = link.href.split("#vote-")[1];
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new KeyboardEvent("keypress", { key: "Enter", bubbles: true }));
  });
  const showDetails = () => {
    const shown = document.querySelector("#details .vote");
    if (details === null || !shown || shown === details) return;
    details = null;
    shown.setAttribute("tabindex", "-1");
    shown.focus();
  };

  const name = (selector, attributes) => {
    for (const element of document.querySelectorAll(selector))
      for (const [key, value] of Object.entries(attributes))
        if (element.getAttribute(key) !== value) element.setAttribute(key, value);
  };
  const openEditors = () => {
    for (const editor of document.querySelectorAll("#chat .edit-textarea:not([aria-label])")) {
      editor.setAttribute("aria-label", words.edit_answer);
      editor.focus();
      editor.closest(".message-row")?.nextElementSibling?.scrollIntoView({ block: "nearest" });
    }
  };
  const mend = () => {
    openEditors();
    // Gradio's sanitizer drops these attributes, and opens what it takes for foreign links in new windows
    name("#head nav", { "aria-label": words.page_language });
    name("#head nav .current", { "aria-current": "true" });
    for (const link of document.querySelectorAll("#head a[target]")) link.removeAttribute("target");
    showDetails();
    name("#chat [role=log]", { "aria-label": words.conversation });
    name("#reasons .wrap", { role: "radiogroup", "aria-label": words.why });
    name("#evidence [data-testid=plotly]", { role: "img", "aria-label": words.evidence });
    name("#confirm div.prose, #end-question div.prose", { role: "alert" });
    name("#evidence-table > button.open", { "aria-expanded": "true" });
    name("#evidence-table > button:not(.open)", { "aria-expanded": "false" });
    name("#status, #outcome, #count, #canary-outcome", { role: "status", "aria-live": "polite" });
    name(".scroll", { tabindex: "0" });
  };
  document.addEventListener("click", async (event) => {
    const link = event.target.closest?.("#head a[href$='/sign-out']");
    if (!link) return;
    event.preventDefault(); // signing out changes something, so it is a POST
    const answer = await fetch(link.href, { method: "POST" });
    location.href = answer.url;
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#evidence-table > button")) setTimeout(mend); // opening it changes a class only
  });
  addEventListener("DOMContentLoaded", () => {
    new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
    mend();
  });
})();
