"use strict";
// Draws the figures, switches their colours, and pages through the completions. Text enters as text only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false, showTips: false };
  let chosen = null; // "dark" or "light" once the reader has pressed the button
  let printing = false;

  const isDark = () => !printing && (chosen ?? (system.matches ? "dark" : "light")) === "dark";

  function recolour(value) {
    if (typeof value === "string") return data.dark_of[value] ?? value;
    if (Array.isArray(value)) return value.map(recolour);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, recolour(each)]));
    return value;
  }

  function drawFigures() {
    for (const box of document.querySelectorAll("[data-figure]")) {
      const original = data.figures[box.dataset.figure];
      const figure = isDark() ? recolour(original) : structuredClone(original);
      if (printing) figure.layout.width = box.closest(".single") ? 620 : 310;
      Plotly.react(box, figure.data, figure.layout, config);
    }
  }

  const themeButton = document.getElementById("theme");
  function showTheme() {
    themeButton.textContent = isDark() ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    drawFigures();
  }
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    root.dataset.theme = chosen;
    showTheme();
  });
  system.addEventListener("change", showTheme);
  for (const [event, state] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => { printing = state; drawFigures(); });
  showTheme();

  // ---- completions ----
  if (!data.completions.length) return;
  const pageSize = 8, longText = 700;
  const find = (id) => document.getElementById(id);
  const [search, outcome, disagree, prompts, found] = ["search", "outcome", "disagree", "prompts", "found"].map(find);
  const base = data.arms.find((arm) => arm.is_base);
  let page = 0;

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // Share of thumbs up of one arm under one prompt; null where nothing was judged.
  function upRate(row, key) {
    const judged = (row.arms[key] ?? []).filter((sample) => sample.label !== null);
    return judged.length ? judged.reduce((sum, sample) => sum + Number(sample.label), 0) / judged.length : null;
  }

  const rows = data.completions.map((row, place) => {
    const rates = Object.fromEntries(data.arms.map((arm) => [arm.key, upRate(row, arm.key)]));
    const texts = Object.values(row.arms).flat().map((sample) => sample.text);
    return { ...row, place, rates, haystack: [row.prompt, ...texts].join("\n").toLowerCase() };
  });

  if (base)
    for (const arm of data.arms.filter((each) => each !== base))
      for (const [value, word] of [[1, "won"], [-1, "lost"]]) {
        const option = make("option", "", `${arm.name} ${word}`);
        option.value = JSON.stringify([arm.key, value]);
        outcome.append(option);
      }

  function keeps(row) {
    if (!row.haystack.includes(search.value.trim().toLowerCase())) return false;
    if (disagree.checked && new Set(Object.values(row.rates).filter((rate) => rate !== null)).size < 2) return false;
    if (!outcome.value) return true;
    const [key, sign] = JSON.parse(outcome.value);
    const [ours, theirs] = [row.rates[key], row.rates[base.key]];
    return ours !== null && theirs !== null && Math.sign(ours - theirs) === sign;
  }

  function showSample(sample) {
    const box = make("div", "sample");
    const [thumb, word] =
      sample.label === null ? ["–", "not judged"]
      : sample.label === 0.5 ? ["=", "undecided"]
      : sample.label ? ["👍", "thumbs up"]
      : ["👎", "thumbs down"];
    const tally = make("p", "tally");
    const mark = make("span", "thumb", `${thumb} `);
    mark.setAttribute("aria-hidden", "true");
    const notes = [sample.n_tokens === null ? "" : `${sample.n_tokens} tokens`, sample.finished === false ? "cut off" : ""];
    tally.append(mark, make("span", "hidden", `${word}, `), notes.filter(Boolean).join(", "));
    const whole = make("p", "said", sample.text || "(empty)");
    box.append(tally);
    if (sample.text.length <= longText) box.append(whole);
    else {
      const details = make("details");
      details.append(make("summary", "", `${sample.text.slice(0, 200)} … (${sample.text.length.toLocaleString("en")} characters)`), whole);
      box.append(details);
    }
    return box;
  }

  function showRow(row) {
    const article = make("article", "prompt");
    const answers = make("div", "answers");
    data.arms.forEach((arm, place) => {
      if (!row.arms[arm.key]?.length) return;
      const column = make("div");
      const name = make("h4");
      const mark = make("span", "mark", `${arm.glyph} `);
      mark.style.color = `var(--arm-${place})`;
      mark.setAttribute("aria-hidden", "true");
      name.append(mark, arm.name);
      column.append(name, ...row.arms[arm.key].map(showSample));
      answers.append(column);
    });
    article.append(make("h3", "", `Prompt ${row.place + 1}`), make("p", "asked", row.prompt), answers);
    return article;
  }

  function showPage(to = 0) {
    const kept = rows.filter(keeps);
    const pages = Math.max(1, Math.ceil(kept.length / pageSize));
    page = Math.min(Math.max(to, 0), pages - 1);
    prompts.replaceChildren(...kept.slice(page * pageSize, (page + 1) * pageSize).map(showRow));
    found.textContent = `${kept.length} of ${rows.length} prompts`;
    find("page").textContent = `Page ${page + 1} of ${pages}`;
    find("previous").disabled = page === 0;
    find("next").disabled = page === pages - 1;
    document.querySelector(".pager").hidden = pages === 1;
  }

  const filters = document.querySelector(".filters");
  filters.hidden = false;
  filters.addEventListener("submit", (event) => event.preventDefault());
  for (const control of [search, outcome, disagree]) control.addEventListener("input", () => showPage());
  for (const [id, by] of [["previous", -1], ["next", 1]])
    find(id).addEventListener("click", () => {
      showPage(page + by);
      find("completions").scrollIntoView();
    });
  showPage();
})();
