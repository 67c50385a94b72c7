"use strict";
// Labels answers by hand. What is chosen is kept in this browser and leaves it as a file.
// Every text becomes a text node.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const store = `redlite-labels-${data.draw}`;
  const byId = (id) => document.getElementById(id);
  const nameOf = { harmful: "harmful", unharmful: "not harmful", skip: "cannot say" };
  const lost = "This browser keeps nothing between visits: save the labels before you close the page.";
  let state = { labeller: "", labels: {}, order: [] }, place = 0;

  try {
    state = Object.assign(state, JSON.parse(localStorage.getItem(store)) || {});
  } catch (error) {
    byId("kept").textContent = lost;
  }
  byId("labeller").value = state.labeller;
  place = firstOpen(0);

  function keep() {
    try {
      localStorage.setItem(store, JSON.stringify(state));
    } catch (error) {
      byId("kept").textContent = lost;
    }
  }

  function firstOpen(from) {
    for (let i = 0; i < data.items.length; i++) {
      const at = (from + i) % data.items.length;
      if (!(at in state.labels)) return at;
    }
    return data.items.length;
  }

  function show() {
    const done = Object.keys(state.labels).length, all = data.items.length, item = data.items[place];
    byId("progress").value = done;
    byId("count").textContent =
      `${done} of ${all} labelled; ` + (item ? `this is number ${place + 1}` : "all done, save the file");
    byId("question").textContent = item ? item.question : "";
    byId("answer").textContent = item ? item.answer : "";
    const chosen = state.labels[place];
    byId("chosen").textContent = item && chosen ? `labelled: ${nameOf[chosen]}` : "";
    for (const label of Object.keys(nameOf)) byId(label).disabled = !item;
    byId("undo").disabled = !state.order.length;
    byId("previous").disabled = place === 0;
    byId("next").disabled = place >= all;
    byId("save").disabled = !done;
    byId("item").hidden = !item;
    if (done) byId("count").scrollIntoView();  // on small screens the rules stay above
  }

  function choose(label) {
    if (place >= data.items.length) return;
    state.order.push([place, state.labels[place]]);
    state.labels[place] = label;
    keep();
    place = firstOpen(place);
    show();
  }

  function undo() {
    if (!state.order.length) return;
    const [at, before] = state.order.pop();
    place = at;
    if (before) state.labels[at] = before;
    else delete state.labels[at];
    keep();
    show();
  }

  function move(by) {
    place = Math.min(Math.max(place + by, 0), data.items.length);
    show();
  }

  function save() {
    const labels = Object.entries(state.labels).map(([at, label]) => {
      const { id, prompt, sample } = data.items[at];
      return { id, prompt, sample, label };
    });
    const text = JSON.stringify({ draw: data.draw, labeller: state.labeller, labels }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    link.download = `labels${state.labeller ? "-" + state.labeller.replace(/[^\w-]+/g, "-") : ""}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);  // Safari reads it after the click
  }

  async function open(file) {
    try {
      const read = JSON.parse(await file.text());
      if (read.draw !== data.draw) throw new Error("it belongs to another sample");
      const name = ({ id, prompt, sample }) => JSON.stringify([id, prompt, sample]);
      const at = new Map(data.items.map((item, i) => [name(item), i]));
      for (const row of read.labels) {
        const i = at.get(name(row));
        if (i !== undefined && row.label in nameOf) state.labels[i] = row.label;
      }
      state.labeller = byId("labeller").value = read.labeller || "";
      state.order = [];
      keep();
      place = firstOpen(0);
      show();
    } catch (error) {
      byId("kept").textContent = `${file.name} cannot be read: ${error.message}`;
    }
  }

  const clicked = (id, act) => byId(id).addEventListener("click", act);
  for (const label of Object.keys(nameOf)) clicked(label, () => choose(label));
  clicked("undo", undo);
  clicked("previous", () => move(-1));
  clicked("next", () => move(1));
  clicked("save", save);
  byId("open").addEventListener("change", ({ target }) => target.files.length && open(target.files[0]));
  byId("labeller").addEventListener("input", ({ target }) => {
    state.labeller = target.value.trim();
    keep();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { h: () => choose("harmful"), u: () => choose("unharmful"), s: () => choose("skip"), z: undo,
                  ArrowLeft: () => move(-1), ArrowRight: () => move(1) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  byId("form").hidden = false;
  show();
})();
