// Filters the samples of the report and sorts its leaderboards. Everything else on the page works without this script.
"use strict";
for (const table of document.querySelectorAll("table.board")) {
  const body = table.tBodies[0];
  const heads = [...table.querySelectorAll("th.sortable")];
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.title = "sort, best first";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // models without a figure come last, and those whose figure is not comparable after the ones whose is
      const key = (row) => {
        const cell = row.cells[2 + Number(head.dataset.column)];
        if (!cell.dataset.value) return Infinity;
        return Number(cell.dataset.value) * (head.dataset.higher === "1" ? -1 : 1) + (cell.classList.contains("unlike") ? 10 : 0);
      };
      body.append(...[...body.rows].sort((a, b) => (key(a) === key(b) ? 0 : key(a) - key(b))));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", head.dataset.higher === "1" ? "descending" : "ascending");
    });
  }
}
(() => {
  const form = document.getElementById("filter");
  const samples = [...document.querySelectorAll(".sample")];
  if (!form || !samples.length) return;
  const fields = ["run", "task", "category", "language", "verdict"].filter((name) => form.elements[name]);
  const texts = new Map();
  const textOf = (sample) => {
    if (!texts.has(sample)) texts.set(sample, sample.textContent.toLowerCase());
    return texts.get(sample);
  };
  const apply = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const sample of samples) {
      const fits = fields.every((name) => !form.elements[name].value || sample.dataset[name] === form.elements[name].value);
      sample.hidden = !(fits && words.every((word) => textOf(sample).includes(word)));
      shown += sample.hidden ? 0 : 1;
    }
    document.getElementById("count").textContent = `${shown} of ${samples.length} rows on this page`;
  };
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
