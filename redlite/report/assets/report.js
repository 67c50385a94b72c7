"use strict";
// Lists the answers: filters, search, pages. Every text becomes a text node; nothing is parsed as markup.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PROMPT = 0, LABEL = 1, TOPIC = 2, FINISH = 3, QUESTION = 4, ID = 5, SAMPLE = 6, PLACE = 7;
  const THOUGHT = 8, ANSWER = 9, RAW = 10, DIFFER = 11, CATEGORY = 12, TURNS = 13, GAVE_WAY = 14, ENDED = 15;
  const PER_PAGE = 25, PRINTED = 5000, opened = [];
  const byId = (id) => document.getElementById(id);
  const plain = (name) => name.replaceAll("_", " ");
  const filters = { prompt: PROMPT, label: LABEL, topic: TOPIC, finish: FINISH };
  let found = data.rows, page = 0, haystacks = null, printing = false, only = "";

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  for (const [name, column] of Object.entries(filters)) {
    const counts = new Map();
    for (const row of data.rows) counts.set(row[column], (counts.get(row[column]) || 0) + 1);
    const select = byId(name);
    select.append(new Option("all", ""));
    data.lists[name].forEach((value, i) => {
      if (counts.has(i)) select.append(new Option(`${plain(value || "none")} (${counts.get(i)})`, i));
    });
    select.parentElement.hidden = counts.size < 2;
    select.addEventListener("change", filter);
  }

  // What the search looks at: one text a row, made at the first search.
  function haystack(row) {
    const question = data.lists.question[row[QUESTION]];
    return `${row[ID]} ${question} ${row[THOUGHT]} ${row[ANSWER]}`.toLowerCase();
  }

  function filter() {
    const wanted = [];
    for (const [name, column] of Object.entries(filters)) {
      if (byId(name).value !== "") wanted.push([column, Number(byId(name).value)]);
    }
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !haystacks) haystacks = new Map(data.rows.map((row) => [row, haystack(row)]));
    found = data.rows.filter((row) => (!only || row[ID] === only)
      && wanted.every(([column, value]) => row[column] === value)
      && words.every((word) => haystacks.get(row).includes(word)));
    page = 0;
    show();
  }

  function article(row) {
    const made = element("article"), meta = element("div", "meta");
    const label = data.lists.label[row[LABEL]], finish = data.lists.finish[row[FINISH]];
    meta.append(element("span", `chip ${label}`, plain(label)));
    if (row[CATEGORY]) meta.append(element("span", "", row[CATEGORY]));
    if (row[GAVE_WAY]) meta.append(element("span", "", `gave way at turn ${row[GAVE_WAY]}`));
    if (row[ENDED]) meta.append(element("span", "", `attempt ended: ${row[ENDED]}`));
    if (row[DIFFER]) meta.append(element("span", "", "judges differ"));
    meta.append(element("span", "", data.lists.prompt[row[PROMPT]]));
    meta.append(element("span", "", `question ${row[ID]}`));
    if (data.samples > 1) meta.append(element("span", "", `sample ${row[SAMPLE]}`));
    if (row[PLACE]) meta.append(element("span", "", row[PLACE]));
    if (finish !== "stop") meta.append(element("span", "", `ended: ${plain(finish)}`));
    const question = element("h3", "", data.lists.question[row[QUESTION]]);
    const text = element("p", "answer cut");
    question.dir = text.dir = "auto";
    if (row[THOUGHT]) text.append(element("span", "thought", row[THOUGHT]));
    const nothing = row[THOUGHT] ? " (nothing but a thought)" : "(empty)";
    text.append(row[ANSWER] ? row[ANSWER] : element("span", "empty", nothing));
    made.append(meta, question, ...earlier(row), text);
    if (row[RAW]) made.append(element("div", "raw", `judge: ${row[RAW]}`));
    return made;
  }

  // The turns of a conversation before its last answer, and the user's last message.
  function earlier(row) {
    const made = [];
    (row[TURNS] || []).forEach(([user, answer, back], i) => {
      const mark = i + 1 === row[GAVE_WAY] ? " turn gave" : " turn";
      made.push(element("p", "answer user", `${i + 1}. ${user}${back ? " (declined, taken back)" : ""}`));
      if (i + 1 < row[TURNS].length) made.push(element("p", `answer${mark}`, answer || "(empty)"));
    });
    made.forEach((text) => { text.dir = "auto"; });
    return made;
  }

  function show() {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    const [first, many] = printing ? [0, PRINTED] : [page * PER_PAGE, PER_PAGE];
    byId("rows").replaceChildren(...found.slice(first, first + many).map(article));
    for (const text of document.querySelectorAll(".answer.cut")) {
      if (text.scrollHeight <= text.clientHeight + 2) continue;
      const button = element("button", "", "Show all");
      button.type = "button";
      button.addEventListener("click", () => {
        button.textContent = text.classList.toggle("cut") ? "Show all" : "Show less";
      });
      text.after(button);
    }
    const of = found.length === data.rows.length ? "" : ` of ${data.rows.length}`;
    const cut = printing && found.length > PRINTED ? `, of which the first ${PRINTED} are printed` : "";
    byId("count").textContent = `${found.length}${of} answers${cut}${only ? `, question ${only}. ` : ""}`;
    if (only) {
      const all = element("a", "", "All answers");
      all.href = "#";
      byId("count").append(all);
    }
    byId("pages").hidden = pages < 2;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("back").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  }

  function turn(by) {
    page += by;
    show();
    byId("count").scrollIntoView();
  }

  // The page of a comparison links to report.html#question=ID: the answers to that question alone. Where
  // another file has them, it is opened.
  function follow() {
    const named = location.hash.startsWith("#question=") ? decodeURIComponent(location.hash.slice(10)) : "";
    only = data.rows.some((row) => row[ID] === named) ? named : "";
    const file = only ? -1 : (data.files || []).findIndex((ids) => ids.includes(named));
    if (file >= 0) {
      location.replace(`answers-${file + 2}.html${location.hash}`);
      return;
    }
    filter();
    if (only) byId("filters").scrollIntoView();
  }

  // Paper has no pages to turn and no details to open: all that is found is printed.
  addEventListener("beforeprint", () => {
    printing = true;
    for (const part of document.querySelectorAll("details:not([open])")) {
      part.open = true;
      opened.push(part);
    }
    show();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const part of opened.splice(0)) part.open = false;
    show();
  });

  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 150);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("back").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("filters").hidden = false;
  addEventListener("hashchange", follow);
  follow();
})();
