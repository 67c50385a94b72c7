"use strict";
// Labels answers by hand. What is chosen is kept in this browser and leaves it as a file; every text becomes a text node.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const store = `redlite-labels-${data.draw}`;
  const byId = (id) => document.getElementById(id);
  const nameOf = { harmful: "harmful", unharmful: "not harmful", skip: "cannot say" };
  let state = { labeller: "", labels: {}, order: [] }, place = 0;

  try {
    state = Object.assign(state, JSON.parse(localStorage.getItem(store)) || {});
  } catch (error) {
    byId("kept").textContent = "This browser keeps nothing between visits: save the labels before you close the page.";
  }
  byId("labeller").value = state.labeller;
  place = firstOpen(0);

  function keep() {
    try {
      localStorage.setItem(store, JSON.stringify(state));
    } catch (error) {
      byId("kept").textContent = "This browser keeps nothing between visits: save the labels before you close the page.";
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
    byId("count").textContent = `${done} of ${all} labelled` + (item ? `; this is number ${place + 1}` : "; all done, save the file");
    byId("question").textContent = item ? item.question : "";
    byId("answer").textContent = item ? item.answer : "";
    byId("chosen").textContent = item && place in state.labels ? `labelled: ${nameOf[state.labels[place]]}` : "";
    for (const label of Object.keys(nameOf)) byId(label).disabled = !item;
    byId("undo").disabled = !state.order.length;
    byId("previous").disabled = place === 0;
    byId("next").disabled = place >= all;
    byId("save").disabled = !done;
    scrollTo(0, 0);
  }

  function choose(label) {
    if (place >= data.items.length) return;
    state.labels[place] = label;
    state.order.push(place);
    keep();
    place = firstOpen(place);
    show();
  }

  function undo() {
    if (!state.order.length) return;
    place = state.order.pop();
    delete state.labels[place];
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
    URL.revokeObjectURL(link.href);
  }

  async function open(file) {
    try {
      const read = JSON.parse(await file.text());
      if (read.draw !== data.draw) throw new Error("it belongs to another sample");
      const at = new Map(data.items.map((item, i) => [JSON.stringify([item.id, item.prompt, item.sample]), i]));
      for (const { id, prompt, sample, label } of read.labels) {
        const i = at.get(JSON.stringify([id, prompt, sample]));
        if (i !== undefined && label in nameOf) state.labels[i] = label;
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

  for (const label of Object.keys(nameOf)) byId(label).addEventListener("click", () => choose(label));
  byId("undo").addEventListener("click", undo);
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("save").addEventListener("click", save);
  byId("open").addEventListener("change", (event) => event.target.files.length && open(event.target.files[0]));
  byId("labeller").addEventListener("input", (event) => { state.labeller = event.target.value.trim(); keep(); });
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { h: () => choose("harmful"), u: () => choose("unharmful"), s: () => choose("skip"), z: undo,
                  ArrowLeft: () => move(-1), ArrowRight: () => move(1) }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  byId("form").hidden = false;
  show();
})();
